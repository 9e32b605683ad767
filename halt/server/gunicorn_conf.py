"""gunicorn's settings, and what its master and its workers do at their start and their end.

The master starts the embedded model where no other is set, and prints where the page is. The
workers (WEB_CONCURRENCY, 1 by default) serve the same streams, whichever of them is asked.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket
import sys
from typing import Any

# All that workers need, loaded here once, before the fork: a worker is there at once, and so is the
# one that takes the place of one that died.
import halt.app  # noqa: F401
from halt.config import data_dir, open_files
from halt.config.environment import load, publish, variable
from halt.config.model_servers import DiscoveryResult
from halt.config.provider_setup import setup
from halt.config.providers import Setup
from halt.config.settings import Config, ConfigError
from halt.errors import StoreUnavailable
from halt.providers import discovery, embedded_model
from halt.server import page_opener, systemd
from halt.store.migrate import open_database
from halt.web import server_check, via
from halt.web.services import Services

STDIN = 0  # by its number: `sys.stdin` is None where it was closed
#: Seconds without a heartbeat after which the master replaces a worker.
HANGS_AFTER = 60
#: The variables in which the master tells its workers of the demo model.
EMBEDDED = ("HALT_EMBEDDED_URL", "HALT_EMBEDDED_KEY", "HALT_EMBEDDED_MODEL", "HALT_EMBEDDED_FAULT")


def settings() -> dict[str, Any]:
    """gunicorn's settings by name, from what the environment says now.

    Leaves with one line where a setting is wrong.
    """
    try:
        config = load()
        providers = setup(config)
    except ConfigError as fault:
        sys.exit(f"halt: {fault}")
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level="WARNING")
    logging.getLogger("halt").setLevel("INFO")
    return {
        "wsgi_app": "halt.wsgi:app",  # as in `halt.server.serve`
        "bind": [_host_and_port(config.host.strip("[]"), config.port)],
        "worker_class": "halt.server.worker.Worker",
        "workers": config.workers,
        "threads": config.threads,
        # The worker's own limit follows from the open files.
        "worker_connections": open_files.WANTED,
        "sendfile": False,  # it would wait for clients, and reads past the worker's deadlines
        "backlog": 2048,
        "keepalive": 30,
        "timeout": HANGS_AFTER,
        "graceful_timeout": config.graceful_timeout,
        "errorlog": "-",
        "loglevel": "warning",
        "proc_name": "halt",
        # Nothing here needs it, and it is one more thread before the fork.
        "control_socket_disable": True,
        # HTTP/2 would queue a Stop behind the stream on the same connection; a proxy may speak it.
        "http_protocols": "h1",
        # HALT_TRUSTED_PROXIES alone says whether a header may name a client's scheme or address. By
        # default gunicorn believes any connection from this machine or over a Unix socket, and
        # takes SCRIPT_NAME from there too, which some proxies pass on from their clients.
        "secure_scheme_headers": {},
        "forwarder_headers": "",
        "on_starting": lambda server: on_starting(server, config, providers),
        "on_reload": on_reload,
        "when_ready": lambda server: when_ready(server, config),
        "post_fork": post_fork,
        "post_worker_init": post_worker_init,
        "worker_exit": worker_exit,
        "on_exit": on_exit,
    }


def _host_and_port(host: str, port: int) -> str:
    """An address as a URL has it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


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
                where = _host_and_port(*address[:2])
                sys.exit(f"halt: cannot listen on {where}: {exc.strerror}. Set HOST or PORT.")


def on_starting(server: Any, config: Config, providers: Setup) -> None:
    """In the master, before it forks: the embedded model, and a key that all workers share.

    What has to outlive a reload of the settings (SIGHUP) is kept at `server`.
    """
    if server.cfg.workers < 1:
        sys.exit(f"halt: --workers={server.cfg.workers} is not allowed: at least one is needed.")
    _check_addresses(server)
    server.halt_is_at_terminal = os.isatty(STDIN) and not _ignores_hangup()
    address, watchdog = systemd.take_notify()
    server.halt_systemd = systemd.Notifier(server, address, watchdog) if address else None
    try:
        server_check.check_gunicorn(server.cfg, config)
        key = config.secret_key or data_dir.secret_key(config.data_folder)
        data_dir.socket_folder(data_dir.run_folder(config.data_folder))
        open_database(config.data_folder, config.database_url).close()
    except ConfigError as exc:
        sys.exit(f"halt: {exc}")
    published = {"HALT_SECRET_KEY": key}
    server.halt_supervisor = None
    if config.has_provider:
        model = providers.default or providers.providers[0].first_model or "the first model"
        talks_to = f"{model} at {', '.join(each.base_url for each in providers.providers)}"
    else:
        found = _discover(server, config)
        published["HALT_DISCOVERED"] = found.encoded()
        # Not those of an older master, of whose demo model nothing may be left.
        published |= dict.fromkeys(EMBEDDED, "")
        talks_to = found.text
        if config.model and found.chats and not found.named(config.model):
            talks_to += f"; HALT_MODEL={config.model!r} is in none of their lists"
    if not (config.has_provider or found.chats):
        missing = embedded_model.unavailable()
        if missing is None:
            server.halt_supervisor = embedded_model.launch()
            chosen = server.halt_supervisor.embedded
            published |= {
                "HALT_EMBEDDED_URL": chosen.base_url,
                "HALT_EMBEDDED_KEY": chosen.api_key,
                "HALT_EMBEDDED_MODEL": chosen.model,
            }
            demo = f"the demo model {chosen.model} (set OPENAI_API_KEY or OPENAI_BASE_URL)"
        else:
            published["HALT_EMBEDDED_FAULT"] = missing
            demo = f"no model: {missing}"
        talks_to = "; ".join(filter(None, (demo, talks_to)))
    published["HALT_MAX_STREAMS"] = str(open_files.allow(config.max_streams))
    publish(published)
    server.halt_talks_to = talks_to


def _ignores_hangup() -> bool:
    """Whether this was started by nohup, to outlive its terminal. gunicorn takes SIGHUP anyway."""
    return signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def _discover(server: Any, config: Config) -> DiscoveryResult:
    """The model servers that are found at the start, nothing where none are looked for."""
    listens = list(server.cfg.address)
    if variable("LISTEN_FDS"):
        listens.append(None)  # systemd's sockets, of which the settings tell nothing
    mark = via.mark_of(config.data_folder)
    return discovery.discover_at_start(discovery.discovery_addresses(config, listens), mark)


def when_ready(server: Any, config: Config) -> None:
    """In the master, listening, before it forks."""
    # What is loaded by now stays: no collection need look at it, and workers share its memory.
    gc.freeze()
    gc.enable()  # see `halt.server.serve`
    addresses = [
        name if name.startswith(("http", "unix:")) else f"http://{name}"
        for name in map(str, server.LISTENERS)
    ]
    where = ", ".join(addresses)
    print(f"Halt is at {where}\nIt talks to {server.halt_talks_to}", file=sys.stderr, flush=True)
    is_replacement = server.master_pid != 0  # started by SIGUSR2, without the options of the first
    if config.open_page and not is_replacement and (page := page_opener.page_of(addresses)):
        page_opener.open_page(page)


def on_reload(server: Any) -> None:
    """In the master, with the settings read again, before it starts workers that go by them.

    The system sends SIGHUP when a terminal's window is closed, too; then the server leaves.
    """
    if server.halt_is_at_terminal and not os.isatty(STDIN):
        os.kill(os.getpid(), signal.SIGTERM)
        return
    if server.halt_systemd is not None:
        server.halt_systemd.reloading()


def post_fork(server: Any, worker: Any) -> None:
    """In a worker, before it loads the application."""
    if server.halt_supervisor is not None:
        server.halt_supervisor.close_inherited_pipe()


def post_worker_init(worker: Any) -> None:
    """In a worker, with the application loaded: streams end in order when it is told to leave."""
    # Of a terminal that is closed; the master tells the worker to leave then.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    gc.freeze()
    # Beside a thread that computes, the relay waits for the interpreter's lock for one interval. Of
    # 100 streams the median token came after 262 ms with 5 ms (the default), after 19 ms with 1 ms.
    sys.setswitchinterval(0.001)
    parts: Services = worker.wsgi.extensions["halt"]
    service = parts.generations
    service.alive = lambda: worker.alive
    service.keeper.ends_process = True  # one whose relay has failed: the master starts another
    parts.sessions.prepare(worker.wsgi)
    service.begin()
    try:
        parts.replay.recover()
    except StoreUnavailable as fault:  # the next request for one of them tries it again
        logging.getLogger("halt").error("interrupted answers: %s", fault.message)


def worker_exit(server: Any, worker: Any) -> None:
    """In a worker, about to leave."""
    application = getattr(worker, "wsgi", None)
    if application is not None:
        application.extensions["halt"].close()


def on_exit(server: Any) -> None:
    """In the master, about to leave."""
    if server.halt_supervisor is not None:
        server.halt_supervisor.close()
