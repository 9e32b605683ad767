"""Checks the server that loads the application, and refuses one in which Stop cannot work.

gunicorn must run `halt.server.worker.Worker` with one thread per stream and some more. Its
synchronous worker has one thread, which the stream occupies while the Stop waits. Its asynchronous
workers run every view in one event loop. In its threaded worker idle connections can occupy every
thread, and it cuts streams off when it exits. gunicorn does not pass its settings to an
application, but it loads the application itself: the object that has the settings is on the stack
while the application is created.

Other servers (Flask's own, waitress, a test client) use one thread per request and are accepted.
"""

from __future__ import annotations

import sys
from shlex import quote
from types import FrameType
from typing import Any

import click

from halt.assets import CHECKOUT
from halt.config.checks import check_reachable
from halt.config.settings import Config, ConfigError

#: If a worker exits with this status, gunicorn's master exits too. For any other status the master
#: starts the next worker, without end.
EXIT_STATUS = 4

WORKER = "halt.server.worker.Worker"  # the name by which gunicorn loads it
_START = f"cd {quote(str(CHECKOUT))} && gunicorn app:app" if CHECKOUT else "halt-chat"
_HINT = f"Start Halt by `{_START}`, without -k and --threads."


def check(settings: Config) -> None:
    """Check the server. Call it while the application is created. Raises ConfigError."""
    gunicorn = _gunicorn()
    if gunicorn is not None:
        check_gunicorn(gunicorn, settings)
    command = click.get_current_context(silent=True)
    if command is not None and command.params.get("with_threads") is False:  # of `flask run`
        raise ConfigError("One thread cannot stop a stream: leave out --without-threads.")


def check_gunicorn(gunicorn: Any, settings: Config) -> None:
    """Check gunicorn's settings; `gunicorn` is its `Config` object. Raises ConfigError."""
    class_names = {f"{c.__module__}.{c.__name__}" for c in gunicorn.worker_class.__mro__}
    if WORKER not in class_names:
        raise ConfigError(
            f"gunicorn runs its {gunicorn.worker_class_str} worker, and Stop needs Halt's own, "
            f"which gunicorn.conf.py sets. {_HINT}"
        )
    if gunicorn.max_requests:
        raise ConfigError(
            f"--max-requests={gunicorn.max_requests} is not allowed: a worker that is replaced "
            f"cuts its streams off. {_HINT}"
        )
    if gunicorn.strip_header_spaces:
        raise ConfigError(
            "--strip-header-spaces is not allowed: Halt's worker and gunicorn would find the end "
            f"of a request in different places. {_HINT}"
        )
    if gunicorn.threads < settings.threads:
        raise ConfigError(
            f"--threads={gunicorn.threads} is too few: {settings.max_streams} streams "
            f"(HALT_MAX_STREAMS) need {settings.threads}. {_HINT}"
        )
    if settings.user_header:
        _check_headers(gunicorn)
    for address in gunicorn.address:
        if isinstance(address, tuple):  # else a Unix socket
            check_reachable(settings, f"--bind={address[0]}", address[0])


def _check_headers(gunicorn: Any) -> None:
    """Check that HALT_USER_HEADER reaches Halt from the connection's other end alone."""
    if gunicorn.header_map == "dangerous" or gunicorn.forwarder_headers:
        raise ConfigError(
            "--header-map=dangerous and --forwarder-headers are not allowed with "
            "HALT_USER_HEADER: a client could send the same header with underscores, which no "
            f"proxy removes. {_HINT}"
        )
    if gunicorn.proxy_protocol != "off":
        raise ConfigError(
            "--proxy-protocol is not allowed with HALT_USER_HEADER: Halt would not see the "
            f"address of the proxy. {_HINT}"
        )


def _gunicorn() -> Any:
    """The `Config` object of the gunicorn that loads the application; None for other servers."""
    base = sys.modules.get("gunicorn.app.base")
    if base is None:
        return None
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        loader = frame.f_locals.get("self")
        if isinstance(loader, base.BaseApplication):
            return loader.cfg
        frame = frame.f_back
    return None
