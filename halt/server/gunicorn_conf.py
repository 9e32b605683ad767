"""gunicorn's settings, and its hooks at the start and end of the master and the workers.

The master starts the embedded model if no provider is set, found or connected, and prints the
page's address. The workers (WEB_CONCURRENCY, 1 by default) serve the same streams.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket
import sys
from typing import Any

# Loaded once, before the fork, so that a worker starts at once, also one that replaces a dead one.
import halt.app  # noqa: F401
from halt.config import data_dir, open_files
from halt.config.environment import load, publish, variable
from halt.config.model_servers import DiscoveryResult
from halt.config.provider_setup import setup
from halt.config.providers import Setup
from halt.config.settings import Config, ConfigError
from halt.connected.settings import usable_rows
from halt.connected.vault import make_vault
from halt.errors import HaltError, StoreUnavailable
from halt.people import adoption
from halt.providers import discovery, embedded_model
from halt.server import page_opener, systemd
from halt.store.connected import ConnectedRows, ProviderRow
from halt.store.database import Database
from halt.store.migrate import open_database
from halt.web import server_check, via
from halt.web.services import Services

STDIN = 0  # a file descriptor: `sys.stdin` is None if it was closed
#: Seconds without a heartbeat after which the master replaces a worker.
HANGS_AFTER = 60
#: The variables by which the master passes the demo model to its workers.
EMBEDDED = ("HALT_EMBEDDED_URL", "HALT_EMBEDDED_KEY", "HALT_EMBEDDED_MODEL", "HALT_EMBEDDED_FAULT")


def settings() -> dict[str, Any]:
    """gunicorn's settings by name, from the environment variables.

    A wrong setting ends the process with a one-line error.
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
        # No limit here: the worker limits connections by the number of open files.
        "worker_connections": open_files.WANTED,
        "sendfile": False,  # it would wait for clients, without the worker's deadlines
        "backlog": 2048,
        "keepalive": 30,
        "timeout": HANGS_AFTER,
        "graceful_timeout": config.graceful_timeout,
        "errorlog": "-",
        "loglevel": "warning",
        "proc_name": "halt",
        # Not used, and it would start a thread before the fork.
        "control_socket_disable": True,
        # With HTTP/2 a Stop would queue behind the stream on its connection. A proxy may use it.
        "http_protocols": "h1",
        # HALT_TRUSTED_PROXIES alone decides whether headers give a client's scheme and address. By
        # default gunicorn trusts every connection from this machine or over a Unix socket, and
        # takes SCRIPT_NAME from it too, which some proxies pass on from their clients.
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
    """Host and port as in a URL, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _check_addresses(server: Any) -> None:
    """End with a one-line error if an address cannot be bound, before anything is loaded."""
    if server.master_pid:  # replaces an older master and inherits its sockets
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
                text = _host_and_port(*address[:2])
                sys.exit(f"halt: cannot listen on {text}: {exc.strerror}. Set HOST or PORT.")


def on_starting(server: Any, config: Config, providers: Setup) -> None:
    """In the master, before it forks: check the server, start the embedded model, set variables.

    Values that must survive a reload of the settings (SIGHUP) are attributes of `server`.
    """
    if server.cfg.workers < 1:
        sys.exit(f"halt: --workers={server.cfg.workers} is not allowed: use at least 1.")
    _check_addresses(server)
    server.halt_is_at_terminal = os.isatty(STDIN) and not _ignores_hangup()
    address, watchdog = systemd.take_notify()
    server.halt_systemd = systemd.Notifier(server, address, watchdog) if address else None
    try:
        server_check.check_gunicorn(server.cfg, config)
        key = config.secret_key or data_dir.secret_key(config.data_folder)
        data_dir.socket_folder(data_dir.run_folder(config.data_folder))
        database = open_database(config.data_folder, config.database_url)
        adoption.at_start(config, database)
        connected, chosen = _connected(config, database)
        database.close()
    except ConfigError as exc:
        sys.exit(f"halt: {exc}")
    published = {"HALT_SECRET_KEY": key}
    if not config.secret_key:
        published |= {"HALT_SECRET_KEY_IN_FOLDER": "1"}
    server.halt_supervisor = None
    if config.has_provider:
        model_server = _configured_text(providers, chosen)
    else:
        discovered = _discover(server, config)
        published["HALT_DISCOVERED"] = discovered.encoded()
        # Clear those of an older master, whose demo model may have ended.
        published |= dict.fromkeys(EMBEDDED, "")
        model_server = discovered.text
        model_server += _default_text(config.model, discovered, connected)
    if connected:
        titles = ", ".join(f"{provider.title} at {provider.base_url}" for provider in connected)
        model_server = "; ".join(filter(None, (model_server, f"connected: {titles}")))
    if chosen and not providers.default:
        model_server += f"; default model: {chosen}"
    if not (config.has_provider or discovered.has_chat_model or connected):
        demo, variables = _start_demo(server)
        published |= variables
        model_server = "; ".join(filter(None, (demo, model_server)))
    if config.unused_provider:
        model_server += f"; {config.unused_provider}"
    published["HALT_MAX_STREAMS"] = str(open_files.raise_limit(config.max_streams))
    publish(published)
    server.halt_model_server = model_server


def _default_text(model: str, discovered: DiscoveryResult, connected: list[ProviderRow]) -> str:
    """Why the default model of the settings is not used, "" if it is or may be."""
    if model.partition("/")[0] in (provider.name for provider in connected):
        return ""
    if model and discovered.has_chat_model and not discovered.full_names(model):
        return f"; HALT_MODEL={model!r} is in none of their lists"
    text = discovered.ambiguity_text(model)
    return f"; {text}" if text else ""


def _start_demo(server: Any) -> tuple[str, dict[str, str]]:
    """Start the embedded model if it can run here. What to print, and the workers' variables."""
    fault = embedded_model.unavailable()
    if fault is not None:
        return f"none. {fault}", {"HALT_EMBEDDED_FAULT": fault.page_text}
    server.halt_supervisor = embedded_model.launch()
    embedded = server.halt_supervisor.embedded
    text = (
        f"the demo model {embedded.model} (connect another one on the page “Models”, or set "
        "OPENAI_API_KEY or OPENAI_BASE_URL)"
    )
    return text, {
        "HALT_EMBEDDED_URL": embedded.base_url,
        "HALT_EMBEDDED_KEY": embedded.api_key,
        "HALT_EMBEDDED_MODEL": embedded.model,
    }


def _connected(config: Config, database: Database) -> tuple[list[ProviderRow], str]:
    """The connected providers that somebody can use, and the default model that was chosen.

    The model is PROVIDER/MODEL, "" for none. Raises ConfigError.
    """
    try:
        snapshot = ConnectedRows(database).snapshot()
        rows = usable_rows(config, make_vault(config), snapshot)
    except HaltError as fault:
        logging.getLogger("halt").error("connected providers are not known: %s", fault.message)
        return [], ""
    return rows, "/".join(snapshot.default or ())


def _configured_text(providers: Setup, chosen: str) -> str:
    """The providers of the settings, with their default model unless another one was chosen."""
    base_urls = ", ".join(provider.base_url for provider in providers.providers)
    if chosen and not providers.default:
        return base_urls
    model = providers.default or providers.providers[0].first_model or "the first model"
    return f"{model} at {base_urls}"


def _ignores_hangup() -> bool:
    """Whether nohup started this, to outlive its terminal. gunicorn handles SIGHUP anyway."""
    return signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def _discover(server: Any, config: Config) -> DiscoveryResult:
    """The discovered model servers; an empty result if discovery is off."""
    listens = list(server.cfg.address)
    if variable("LISTEN_FDS"):
        listens.append(None)  # systemd's sockets, which are not in the settings
    instance_id = via.instance_id_of(config.data_folder)
    return discovery.discover_at_start(
        discovery.discovery_addresses(config, listens),
        instance_id,
        allow_link_local=config.allow_link_local,
    )


def when_ready(server: Any, config: Config) -> None:
    """In the master, which listens now, before it forks."""
    # Objects loaded so far stay: the collector skips them, so workers share their memory.
    gc.freeze()
    gc.enable()  # see `halt.server.serve`
    addresses = [
        name if name.startswith(("http", "unix:")) else f"http://{name}"
        for name in map(str, server.LISTENERS)
    ]
    text = f"Halt is at {', '.join(addresses)}\nModel server: {server.halt_model_server}"
    print(text, file=sys.stderr, flush=True)
    is_replacement = server.master_pid != 0  # started by SIGUSR2, without the options of the first
    if config.open_page and not is_replacement and (page := page_opener.page_of(addresses)):
        page_opener.open_page(page)


def on_reload(server: Any) -> None:
    """In the master, after SIGHUP: the settings are read again, new workers not yet started.

    The system also sends SIGHUP when a terminal's window is closed; then the server ends.
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
    """In a worker, with the application loaded: begin to serve."""
    # Sent when the terminal is closed; the master ends the worker then.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    gc.freeze()
    # Beside a thread that computes, the relay waits one interval for the interpreter's lock. With
    # 100 streams the median delay of a token was 262 ms at 5 ms (the default) and 19 ms at 1 ms.
    sys.setswitchinterval(0.001)
    parts: Services = worker.wsgi.extensions["halt"]
    service = parts.generations
    service.alive = lambda: worker.alive
    service.keeper.ends_process = True  # if its relay fails; the master starts another worker
    parts.sessions.prepare(worker.wsgi)
    service.begin()
    parts.connected.start()
    if parts.watch is not None:
        parts.watch.start()
    try:
        parts.replay.recover()
    except StoreUnavailable as fault:  # the next request for such an answer tries again
        logging.getLogger("halt").error(
            "answers interrupted earlier cannot be recovered yet: %s", fault.message
        )


def worker_exit(server: Any, worker: Any) -> None:
    """In a worker that is about to end."""
    application = getattr(worker, "wsgi", None)
    if application is not None:
        application.extensions["halt"].close()


def on_exit(server: Any) -> None:
    """In the master that is about to end."""
    if server.halt_supervisor is not None:
        server.halt_supervisor.close()
