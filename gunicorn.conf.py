"""gunicorn's settings; it finds this file by its name when it is started from this folder.

The master starts the embedded model where no other is set, and prints where the page is. One worker
process: streams, their logs and their Stop live in its memory.
"""

from __future__ import annotations

import logging
import resource
import socket
import sys
from typing import Any

from halt import config as halt_config
from halt import embedded
from halt.database import open_database
from halt.errors import StoreUnavailable
from halt.provider_settings import setup

try:
    _config = halt_config.load()
    _setup = setup(_config)
except halt_config.ConfigError as fault:
    sys.exit(f"halt: {fault}")

bind = [f"{'[' + _config.host + ']' if ':' in _config.host else _config.host}:{_config.port}"]
worker_class = "halt.worker.Worker"
threads = _config.threads
# Streams, short requests, kept-alive and idle connections; the system's limit on open files is the
# one that counts.
worker_connections = 4 * _config.threads + 1000
backlog = 2048
keepalive = 30
timeout = 60
graceful_timeout = _config.graceful_timeout
errorlog = "-"
loglevel = "warning"
proc_name = "halt"
control_socket_disable = True  # nothing here needs it, and it is one more thread before the fork
# HTTP/2 would queue a Stop behind the stream on the same connection; a proxy may speak it.
http_protocols = "h1"

logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level="WARNING")
logging.getLogger("halt").setLevel("INFO")

_supervisor: embedded.Supervisor | None = None


def _check_addresses(server: Any) -> None:
    """Say in one line that an address can't be had, before anything is loaded."""
    if server.master_pid:  # takes the place of an older master, and its sockets
        return
    for address in server.cfg.address:
        if not isinstance(address, tuple):
            continue
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(address)
            except OSError as exc:
                where = f"{address[0]}:{address[1]}"
                sys.exit(f"halt: cannot listen on {where}: {exc.strerror}. Set HOST or PORT.")


def on_starting(server: Any) -> None:
    """In the master, before it forks: the embedded model, and a key that outlives a worker."""
    global _supervisor  # noqa: PLW0603 - gunicorn's hooks are functions of this module
    if server.cfg.workers != 1:
        sys.exit(
            "halt: streams live in the memory of one process: run it with one worker "
            f"(--workers or WEB_CONCURRENCY is {server.cfg.workers}) and as many threads as needed."
        )
    _check_addresses(server)
    try:
        open_database(_config.data_folder, _config.database_url).close()
    except halt_config.ConfigError as fault:
        sys.exit(f"halt: {fault}")
    published = {"HALT_SECRET_KEY": _config.secret_key}
    model = _setup.default or _setup.providers[0].first_model or "the first model"
    talks_to = f"{model} at {', '.join(each.base_url for each in _setup.providers)}"
    if _config.wants_embedded:
        missing = embedded.unavailable()
        if missing is None:
            _supervisor = embedded.launch()
            chosen = _supervisor.embedded
            published |= {
                "HALT_EMBEDDED_URL": chosen.base_url,
                "HALT_EMBEDDED_KEY": chosen.api_key,
                "HALT_EMBEDDED_MODEL": chosen.model,
            }
            talks_to = f"the demo model {chosen.model} (set OPENAI_API_KEY or OPENAI_BASE_URL)"
        else:
            published["HALT_EMBEDDED_FAULT"] = missing
            talks_to = f"no model: {missing}"
    halt_config.publish(published)
    # Each stream takes two descriptors, and the usual soft limit is 1024.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max(soft, 4 * _config.threads + 1000)
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    server.halt_talks_to = talks_to


def when_ready(server: Any) -> None:
    """In the master, listening."""
    where = ", ".join(
        f"http://{listener}" if "http" not in str(listener) else str(listener)
        for listener in server.LISTENERS
    )
    print(f"Halt is at {where}\nIt talks to {server.halt_talks_to}", file=sys.stderr, flush=True)


def post_fork(server: Any, worker: Any) -> None:
    """In a worker, before it loads the application."""
    if _supervisor is not None:
        _supervisor.forget()


def post_worker_init(worker: Any) -> None:
    """In a worker, with the application loaded: streams end in order when it is told to leave."""
    worker.wsgi.extensions["halt"].alive = lambda: worker.alive
    try:
        worker.wsgi.extensions["halt.archive"].recover()
    except StoreUnavailable as fault:  # whoever asks for one of these answers tries it again
        logging.getLogger("halt").error("interrupted answers: %s", fault.message)


def worker_exit(server: Any, worker: Any) -> None:
    """In a worker, about to leave."""
    application = getattr(worker, "wsgi", None)
    if application is not None:
        application.extensions["halt"].close()
        application.extensions["halt.titles"].close()
        application.extensions["halt.store"].close()


def on_exit(server: Any) -> None:
    """In the master, about to leave."""
    if _supervisor is not None:
        _supervisor.close()
