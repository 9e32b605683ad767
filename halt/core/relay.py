"""The relay: one thread with one selector for all sockets between providers and readers.

Other threads begin a generation and handle its end. In between, this thread reads the provider's
socket, appends to the log and writes to the readers' sockets:

    other threads                      post    the relay thread                  for
    ---------------------------------  ----->  --------------------------------  -----------------
    Run.work: upstream is open         reply   READ   the provider's socket      Run -> log
    Run._end: Stop, limit, fault       ended   close  the provider's socket      Run
    a view has sent a response's head  reader  WRITE  the reader's socket        web.sink
    a socket's thread has a frame      frame   WRITE  the WebSocket              web.websocket
    a view's thread follows the log    client  peek   has its client left?       Departure, below
                                               timers: limits, heartbeats, drains, slow readers

    what the relay hands back          later   keeper: ends, a thread for tools or a retry
                                       put     frame thread: blocks of a page
                                       wake    threads that wait at a log or for their reader's end

The thread blocks on its selector and on nothing else: it looks up no name, connects to nothing,
touches no file, database or callback, and writes no log line. It owns the sockets in its selector:
other threads may shut one down, but never close it. No other thread of the core reads, writes or
polls a stream's socket once the response's head has arrived.

Other threads reach it by `post`. It does posted work before it handles sockets, and again after
each socket, so a Stop waits for at most one read. It handles sockets before timers: after a stall,
it reads what has arrived before it checks a limit of silence.

Threads: any thread may call `post`, also in a destructor or a signal handler, since it takes no
lock. Only the relay thread may call the rest.
"""

from __future__ import annotations

import contextlib
import heapq
import os
import select
import selectors
import socket
import threading
from collections import deque
from collections.abc import Callable
from functools import wraps
from itertools import count
from typing import Any, TypeVar
from weakref import WeakSet

from halt.clock import now

READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE
STALL_MAX = 10.0  # seconds of one turn after which the relay counts as failed
PIPELINED_LOOK = 1.0  # seconds between two checks of a client that has sent more bytes
FIGURES_SECONDS = 60.0  # that the longest turn and the lag are kept, at most twice as long

Work = Callable[[], None]
Method = TypeVar("Method", bound=Callable[..., None])


def contained(method: Method) -> Method:
    """Decorate a method that the relay calls: its exceptions do not end the relay.

    The object's `on_fault` gets the exception; it must not raise.
    """

    @wraps(method)
    def call(self: Any, *args: Any) -> None:
        try:
            method(self, *args)
        except Exception as exc:  # noqa: BLE001 - logged by `on_fault`
            self.on_fault(exc)

    return call  # type: ignore[return-value]  # the same parameters


class Timer:
    """Work that is due at a time; `work` is None when it was done or cancelled."""

    __slots__ = ("work",)

    def __init__(self, work: Work) -> None:
        self.work: Work | None = work

    def cancel(self) -> None:
        self.work = None


class Peak:
    """The greatest value of the last FIGURES_SECONDS, or of twice that."""

    def __init__(self) -> None:
        self.most = 0.0  # the greatest value of this period
        self.until = 0.0  # the end of this period
        self._before = 0.0  # the greatest value of the period before

    def note(self, value: float, at: float) -> None:
        """Add a value. A value below `most` has no effect until `until` has passed."""
        if at > self.until:
            recent = at < self.until + FIGURES_SECONDS
            self._before, self.most = (self.most if recent else 0.0), 0.0
            self.until = at + FIGURES_SECONDS
        self.most = max(self.most, value)

    def value(self) -> float:
        """The greatest value."""
        self.note(0.0, now())
        return max(self._before, self.most)


class Relay:
    """See the module."""

    def __init__(self, on_fault: Callable[[BaseException], None]) -> None:
        """`on_fault` is called in the relay thread when the loop itself has failed."""
        self._on_fault = on_fault
        self.longest_turn, self.lag = Peak(), Peak()
        self.turn_began: float | None = None  # None while the thread waits for the selector
        self._turn_ended = 0.0
        self._posts: deque[Work] = deque()
        self._is_woken = False
        self._woken_at = 0.0
        #: Called by the thread at its end, to wake the threads that wait for it.
        self.at_end: set[Work] = set()
        self._again: list[Work] = []
        self._timers: list[tuple[float, int, Timer]] = []
        self._numbers = count()
        self._selector: selectors.BaseSelector
        self._wake_receiver: socket.socket
        self._wake_sender: socket.socket | None = None  # set while the thread runs
        self._thread: threading.Thread | None = None
        self._ident = 0
        self._closing = False
        self._is_over = False  # the thread has ended
        _relays.add(self)

    def start(self) -> None:
        """Start the thread, once. Raises RuntimeError where the system has none."""
        if self._thread is not None:
            return
        self._selector = selectors.DefaultSelector()
        self._wake_receiver, self._wake_sender = socket.socketpair()
        self._wake_receiver.setblocking(False)
        self._wake_sender.setblocking(False)
        self._selector.register(self._wake_receiver, READ, self._on_wake)
        thread = threading.Thread(target=self._run, name="halt-relay", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            self._close_sockets()
            raise
        self._thread = thread

    def _close_sockets(self) -> None:
        sender, self._wake_sender = self._wake_sender, None
        if sender is not None:
            sender.close()
            self._wake_receiver.close()
            self._selector.close()

    @property
    def is_running(self) -> bool:
        return self._ident != 0 or (self._thread is not None and self._thread.is_alive())

    @property
    def is_current(self) -> bool:
        """Whether the calling thread is the relay."""
        return threading.get_ident() == self._ident

    def post(self, work: Work) -> None:
        """Let the relay thread call `work` soon, in the order of the posts. Takes no lock."""
        self._posts.append(work)
        # A thread that sees the flag set has appended before the relay clears it, so the relay
        # sees the work.
        sender = self._wake_sender
        if not self._is_woken and sender is not None and threading.get_ident() != self._ident:
            self._is_woken = True
            self._woken_at = now()
            with contextlib.suppress(OSError):
                sender.send(b"!")
        if self._is_over:
            self._take_rest()

    def close(self, timeout: float) -> None:
        """End the thread after the work posted so far; wait at most `timeout` seconds for it."""

        def leave() -> None:
            self._closing = True

        self.post(leave)
        if self._thread is None:
            self._closing = True
        elif not self.is_current:
            self._thread.join(timeout)

    def forget(self) -> None:
        """Reset the child after a fork: the thread and its work exist in the parent alone."""
        self._close_sockets()  # this does not affect the parent's copies
        self._posts.clear()
        self._timers.clear()
        self._again.clear()
        self.at_end.clear()
        self._is_woken = False
        self._thread, self._ident = None, 0
        self.turn_began = None

    def figures(self) -> dict[str, float]:
        """The longest turn and the greatest lag of the last 1 to 2 minutes, in milliseconds."""
        longest, lag = self.longest_turn.value(), self.lag.value()
        return {"longest_turn_ms": round(longest * 1000, 2), "lag_ms": round(lag * 1000, 2)}

    # --- for the relay thread ---------------------------------------------------------------------

    def watch(self, sock: Any, events: int, work: Callable[[int], None]) -> None:
        """Call `work` with the ready events in each turn in which `sock` is ready for `events`."""
        self._selector.register(sock, events, work)

    def change(self, sock: Any, events: int, work: Callable[[int], None]) -> None:
        """Watch a watched socket for other events."""
        self._selector.modify(sock, events, work)

    def unwatch(self, sock: Any) -> None:
        """Stop watching a socket. Call before closing it. Does nothing if it is not watched."""
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(sock)

    def call_next_turn(self, work: Work) -> None:
        """Call `work` in the next turn, which begins at once, after that turn's sockets."""
        self._again.append(work)

    def at(self, time: float, work: Work) -> Timer:
        """Call `work` at this time."""
        timer = Timer(work)
        heapq.heappush(self._timers, (time, next(self._numbers), timer))
        return timer

    # --- the loop ---------------------------------------------------------------------------------

    def _run(self) -> None:
        self._ident = threading.get_ident()
        try:
            while not self._closing:
                self._turn()
            for work in list(self.at_end):
                work()
        except BaseException as exc:  # noqa: BLE001 - reported by `on_fault`
            self._on_fault(exc)
        finally:
            self._ident = 0
            # From now on the thread that posts work does it: it closes its sockets, and no thread
            # waits for a relay that has ended.
            self._is_over = True
            self._close_sockets()
            self._take_rest()

    def _turn(self) -> None:
        ready = self._selector.select(self._patience())
        began = self.turn_began = now()
        if self._posts:
            self._take_posts()
        repeated_work, self._again = self._again, []
        for key, events in ready:
            key.data(events)
            if self._posts:
                self._take_posts()
        for work in repeated_work:
            work()
            if self._posts:
                self._take_posts()
        self._fire(began)
        if self._posts:
            self._take_posts()
        self.turn_began = None
        ended = self._turn_ended = now()
        if ended - began > self.longest_turn.most or ended > self.longest_turn.until:
            self.longest_turn.note(ended - began, ended)

    def _patience(self) -> float | None:
        """Seconds that the selector may wait; None: without a limit."""
        if self._posts or self._again:
            return 0.0
        while self._timers and self._timers[0][2].work is None:
            heapq.heappop(self._timers)
        return max(0.0, self._timers[0][0] - self._turn_ended) if self._timers else None

    def _take_posts(self) -> None:
        """Do the work posted so far. Work posted meanwhile is left for the next call."""
        for _ in range(len(self._posts)):
            self._posts.popleft()()

    def _take_rest(self) -> None:
        """Do all posted work, in any thread, after the relay has ended."""
        with contextlib.suppress(IndexError):
            while True:
                self._posts.popleft()()

    def _on_wake(self, _: int) -> None:
        with contextlib.suppress(BlockingIOError):
            self._wake_receiver.recv(64)
        at = now()
        self.lag.note(at - self._woken_at, at)
        self._is_woken = False  # before the posts are taken, which follows

    def _fire(self, at: float) -> None:
        timers = self._timers
        while timers and timers[0][0] <= at:
            timer = heapq.heappop(timers)[2]
            work, timer.work = timer.work, None
            if work is not None:
                work()


class Departure:
    """Calls `gone` when a client has disconnected, for a reader whose thread waits at the log.

    The relay watches a duplicate of the file descriptor, which only the relay closes: the server
    may close its own at any time.
    """

    def __init__(self, relay: Relay, client: socket.socket, gone: Callable[[], None]) -> None:
        self._relay = relay
        self._gone = gone
        self._sock: socket.socket | None = socket.socket(fileno=os.dup(client.fileno()))
        relay.post(self._begin)

    def cancel(self) -> None:
        """Stop watching the client."""
        self._relay.post(self._end)

    @contained
    def _begin(self) -> None:
        if self._sock is not None:
            self._relay.watch(self._sock, READ, self._look)

    def on_fault(self, exc: Exception) -> None:
        """Do nothing: the client is no longer watched, and a write will detect its departure."""

    @contained
    def _end(self) -> None:
        sock, self._sock = self._sock, None
        if sock is not None:
            self._relay.unwatch(sock)
            sock.close()

    @contained
    def _look(self, _: int = READ) -> None:
        if self._sock is None:
            return
        client_left = has_left(self._sock)
        if client_left:
            self._end()
            self._gone()
        elif client_left is None:  # it has sent bytes after its request
            self._relay.unwatch(self._sock)
            self._relay.at(now() + PIPELINED_LOOK, self._begin)


def has_left(client: socket.socket) -> bool | None:
    """Whether the peer has closed its end. None: no, but unread bytes have arrived."""
    try:
        if client.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT):
            return True if _is_half_closed(client) else None
    except (BlockingIOError, InterruptedError):
        return False
    except (OSError, ValueError):
        pass
    return True


def _is_half_closed(client: socket.socket) -> bool:
    """Whether the peer has closed its end behind unread bytes; False without POLLRDHUP."""
    mask = getattr(select, "POLLRDHUP", 0)
    if not mask:
        return False
    poller = select.poll()
    poller.register(client, mask)
    return bool(poller.poll(0))


_relays: WeakSet[Relay] = WeakSet()


def _after_fork() -> None:
    for relay in list(_relays):
        relay.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
