"""Requests and replies between the workers of one server, over Unix sockets.

Each worker listens on NAME.sock (see `.membership`). A request is one frame on a new connection,
answered by one reply frame or by several (see `.channel`).

A worker that hangs delays no other: connecting and sending never wait, and the replies of all
workers are awaited together, until the caller's timeout.

Threads of a worker: one accepts connections, one serves each request (REQUESTS_MAX at once), one
serves each stream that another worker reads here.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path

from halt.clock import now
from halt.cluster.channel import Channel, Replies
from halt.cluster.membership import SWEEP_EVERY, Membership
from halt.config.data_dir import bind_private, socket_folder
from halt.config.settings import ConfigError

REQUEST_WITHIN = 1.0  # seconds for a worker that has connected to send its request
REPLY_WITHIN = 5.0  # seconds for the requesting worker to read a short reply
CLOSE_WITHIN = 1.0  # seconds that `close` waits for replies in progress
REQUESTS_MAX = 64  # requests served at once; further ones wait to be accepted
STREAMS_MAX = 4096  # streams that other workers read here at once
BACKLOG = 512

logger = logging.getLogger(__name__)


#: Serves one request: sends its reply frames, then returns. Exceptions are logged.
Serve = Callable[[bytes, Channel], None]


class Bus:
    """Sends requests to the other workers, and serves theirs."""

    def __init__(self, membership: Membership) -> None:
        self.membership = membership
        self._listener: socket.socket | None = None
        self._accepter: threading.Thread | None = None
        self._closing = threading.Event()
        self._short = threading.BoundedSemaphore(REQUESTS_MAX)
        self._streams = threading.BoundedSemaphore(STREAMS_MAX)
        self._idle = threading.Condition()  # protects the number below
        self._requests_served = 0  # now

    # --- begin and end ----------------------------------------------------------------------------

    def begin(self, serve: Serve) -> Path:
        """Take the lease and serve requests; returns the run folder. Raises ConfigError, OSError.

        To be called after the fork: it starts a thread, and locks belong to a process.
        """
        run, sockets = self.membership.begin()
        self._listener = self._new_listener(sockets)
        self._accepter = threading.Thread(
            target=self._accept, args=(self._listener, serve), name="halt-bus-accept", daemon=True
        )
        self._accepter.start()
        return run

    def close(self) -> None:
        """Serve no further request. Harmless when repeated."""
        self._closing.set()
        self.membership.stop()
        listener, self._listener = self._listener, None
        sockets, name = self.membership.sockets, self.membership.name
        if listener is not None and self._accepter is not None and sockets is not None:
            with contextlib.suppress(OSError):
                self._connect(name, b"").close()  # ends `accept`
            (sockets / f"{name}.sock").unlink(missing_ok=True)
            self._accepter.join(2 * SWEEP_EVERY)
            self.membership.wait_stopped()
            listener.close()
            with self._idle:  # the last events of streams that have ended just now
                self._idle.wait_for(lambda: not self._requests_served, CLOSE_WITHIN)

    # --- serve ------------------------------------------------------------------------------------

    def _new_listener(self, sockets: Path) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            bind_private(listener, (sockets / f"{self.membership.name}.sock").absolute())
            listener.listen(BACKLOG)
            listener.settimeout(SWEEP_EVERY)
        except BaseException:
            listener.close()
            raise
        return listener

    def _repaired(self, listener: socket.socket) -> socket.socket:
        """This listener, or a new one if the socket's file was deleted and the lease is in place.

        The worker's lock file is repaired first, by `Membership`.
        """
        run, sockets = self.membership.run, self.membership.sockets
        if run is None or sockets is None:
            return listener
        # An error is passed over: the next call tries again.
        with contextlib.suppress(ConfigError, OSError), self.membership.files_locked() as in_place:
            if in_place and not (sockets / f"{self.membership.name}.sock").exists():
                new_listener = self._new_listener(socket_folder(run))
                listener.close()
                return new_listener
        return listener

    def _accept(self, listener: socket.socket, serve: Serve) -> None:
        is_failing = False
        while not self._closing.is_set():
            try:
                sock, _ = listener.accept()
                is_failing = False
            except TimeoutError:
                listener = self._repaired(listener)
                continue
            except OSError as exc:  # no file descriptor is free
                if not is_failing and not self._closing.is_set():
                    logger.error("other workers cannot connect to this one: %s", exc)
                is_failing = True
                self._closing.wait(0.1)
                continue
            if self._closing.is_set():
                sock.close()
                break
            self._short.acquire()
            try:
                threading.Thread(
                    target=self._serve_one, args=(sock, serve), name="halt-bus-request", daemon=True
                ).start()
            except RuntimeError:  # the system has no more threads
                self._short.release()
                sock.close()
        listener.close()

    def _serve_one(self, sock: socket.socket, serve: Serve) -> None:
        semaphore = self._short

        def begin_stream() -> bool:
            nonlocal semaphore
            if semaphore is self._short and self._streams.acquire(blocking=False):
                semaphore.release()
                semaphore = self._streams
                sock.settimeout(None)
            return semaphore is self._streams

        with self._idle:
            self._requests_served += 1
        try:
            with contextlib.closing(Channel(sock, begin_stream)) as channel:
                request = channel.receive(REQUEST_WITHIN)
                if request is not None:
                    sock.settimeout(REPLY_WITHIN)
                    serve(request, channel)
        except OSError:
            pass  # the requesting worker has closed the connection, or reads too slowly
        except Exception:
            logger.exception("a request of another worker has failed")
        finally:
            semaphore.release()
            with self._idle:
                self._requests_served -= 1
                self._idle.notify_all()

    # --- request ----------------------------------------------------------------------------------

    @property
    def other_names(self) -> list[str]:
        """Names of the other workers that have a socket, sorted. One that has just died may be
        among them."""
        if self.membership.sockets is None:
            return []
        names = (path.stem for path in self.membership.sockets.glob("*.sock"))
        return sorted(name for name in names if name != self.membership.name)

    def request(self, payload: bytes, timeout: float, only: str | None = None) -> Replies:
        """Send a request to all other workers, or to the one named `only`.

        The request is sent before this returns. `timeout` is in seconds, for all replies together;
        a worker that does not reply in time is left out. A caller that reads more than the first
        frame sets `channel.is_kept`, and closes the channel afterwards.
        """
        channels: dict[str, Channel] = {}
        unreached = []
        for name in self.other_names if only is None else [only]:
            try:
                channels[name] = self._connect(name, payload)
            except FileNotFoundError:
                continue  # it has left
            except OSError:
                unreached.append(name)
        return Replies(channels, now() + timeout, unreached)

    def _connect(self, name: str, payload: bytes) -> Channel:
        """A channel on which this request was sent, without waiting. Raises OSError."""
        sockets = self.membership.sockets
        if sockets is None:
            raise FileNotFoundError(name)
        channel = Channel(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        try:
            channel.sock.setblocking(False)
            channel.sock.connect(os.fspath((sockets / f"{name}.sock").absolute()))
            channel.send(payload)  # fits the kernel's buffer; else the worker counts as unreached
        except BaseException:
            channel.close()
            raise
        return channel
