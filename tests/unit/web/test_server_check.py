"""The check of the WSGI server at the start: servers in which Stop cannot work are refused."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import pytest

from halt.app import create_app
from halt.config.settings import Config
from halt.testing.fake_openai import FakeOpenAI
from halt.web.services import services
from tests.support.halt_server import (
    REFUSAL_TIMEOUT,
    ROOT,
    HaltServer,
    StartHalt,
    halt_environment,
    new_id,
    refused_command,
    refused_start,
)
from tests.support.http_client import Client
from tests.support.waiting import WAIT_TIMEOUT

pytestmark = pytest.mark.slow

RIGHT = re.escape(f"Start Halt by `cd {ROOT} && gunicorn app:app`, without -k and --threads.")


def run_gunicorn(folder: Path, *args: str, **env: str) -> tuple[int, str]:
    """Run gunicorn in a folder without its settings; return exit status and output."""
    command = [sys.executable, "-m", "gunicorn", "-b", "127.0.0.1:0", "--chdir", str(ROOT), *args]
    return refused_command(command, folder, {"HALT_DATA": folder / "data", "HOME": folder, **env})


@pytest.mark.parametrize(
    ("args", "worker"),
    [
        (["app:app"], "sync"),
        (["--threads", "300", "app:create_app()"], "gthread"),
        (["--preload", "app:app"], "sync"),
        (["-k", "asgi", "app:app"], "asgi"),
    ],
)
def test_gunicorn_without_its_settings_is_refused(
    tmp_path: Path, args: list[str], worker: str
) -> None:
    """gunicorn without Halt's settings is refused: one line names the right command, and the master
    ends.
    """
    status, output = run_gunicorn(tmp_path, *args)
    assert status == 4
    assert re.search(f"^halt: gunicorn runs its {worker} worker, .*\\. {RIGHT}$", output, re.M)
    assert "Traceback" not in output
    assert output.count("Booting worker") <= 1


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (["-k", "sync", "--threads", "1"], "gunicorn runs its sync worker, "),
        (["-k", "gthread"], "gunicorn runs its gthread worker, "),
        (["--threads", "1"], "--threads=1 is too few: 500 streams "),
        (["--max-requests", "3"], "--max-requests=3 is not allowed: "),
        (["--strip-header-spaces"], "--strip-header-spaces is not allowed: "),
    ],
)
def test_gunicorn_options_that_break_stop_are_refused(args: list[str], reason: str) -> None:
    """The master refuses other workers and options before it starts a worker, in one line."""
    status, output = refused_start(*args, OPENAI_BASE_URL="http://127.0.0.1:9/v1")
    assert status == 1
    assert re.fullmatch(f"halt: {reason}.*\\. {RIGHT}\n", output)


def test_wrong_setting_ends_gunicorn_in_another_folder(tmp_path: Path) -> None:
    """A wrong setting ends gunicorn, which does not start the worker again and again."""
    status, output = run_gunicorn(tmp_path, "app:app", HALT_MAX_STREAMS="none")
    assert status == 4
    assert re.search(r"^halt: HALT_MAX_STREAMS=.none.", output, re.M)
    assert "Traceback" not in output


class Gunicorn(HaltServer):
    """The command that a refusal names."""

    command = ("-m", "gunicorn", "app:app")


class FlaskRun(HaltServer):
    """Flask's own server."""

    command = ("-m", "flask", "--app", "app", "run", "--port", "0")
    address_line = r"Running on http://([^\s,]+):(\d+)"


@pytest.mark.parametrize("kind", [Gunicorn, FlaskRun])
def test_stop_works_in_gunicorn_and_flask_run(
    kind: type[HaltServer], shared_fake: FakeOpenAI
) -> None:
    """A Stop is answered while its stream is open, and the stream ends."""
    server = kind({"OPENAI_BASE_URL": shared_fake.base_url, "OPENAI_API_KEY": "fake"})
    try:
        assert_stop_works(server.client())
    finally:
        server.close()


def test_flask_run_with_one_thread_is_refused(tmp_path: Path) -> None:
    """`flask run` with one thread is refused in one line that names the option."""
    result = subprocess.run(
        [sys.executable, "-m", "flask", "--app", "app", "run", "--port", "0", "--without-threads"],
        cwd=ROOT,
        env=halt_environment({"HALT_DATA": str(tmp_path)}),
        capture_output=True,
        text=True,
        timeout=REFUSAL_TIMEOUT,
        check=False,
    )
    assert result.returncode == 4
    assert result.stderr == "halt: One thread cannot stop a stream: leave out --without-threads.\n"


class ThreadedServer(ThreadingMixIn, WSGIServer):
    """A WSGI server of the standard library, with a thread for each request."""

    daemon_threads = True


class SilentHandler(WSGIRequestHandler):
    def log_message(self, *_: object) -> None:
        """Log nothing."""


@pytest.fixture
def other_server(shared_fake: FakeOpenAI, tmp_path: Path) -> Iterator[Client]:
    app = create_app(
        Config(base_url=shared_fake.base_url, api_key="fake", data=str(tmp_path), token="12345678")
    )
    with make_server("127.0.0.1", 0, app, ThreadedServer, SilentHandler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield Client("127.0.0.1", server.server_port, Authorization="Bearer 12345678")
        server.shutdown()
        thread.join(WAIT_TIMEOUT)
    services(app).generations.close()
    services(app).store.close()


def test_stop_works_in_any_threaded_wsgi_server(other_server: Client) -> None:
    """A Stop works in any WSGI server that serves each request in its own thread."""
    assert_stop_works(other_server)


def assert_stop_works(client: Client) -> None:
    """A Stop is answered while its stream is open, and the stream ends."""
    stream_id = new_id()
    with client.chat("stall?n=5", id=stream_id) as events:
        events.until_text("4 ")
        assert client.stop(stream_id).json["status"] == "stopped"
        assert events.to_end().terminal["type"] == "cancelled"


def test_bind_to_all_addresses_needs_a_token() -> None:
    """gunicorn's own --bind to all addresses needs a token, as HOST does."""
    model = {"OPENAI_BASE_URL": "http://127.0.0.1:9/v1"}
    status, output = refused_start("--bind", "0.0.0.0:0", **model)
    assert status == 1
    assert re.fullmatch("halt: --bind=0.0.0.0 is reachable from other machines and .*\n", output)
    server = HaltServer({**model, "HALT_TOKEN": "a-good-token"}, "--bind", "0.0.0.0:0")
    server.close()


def test_empty_web_concurrency_counts_as_unset(start_halt: StartHalt) -> None:
    """An empty WEB_CONCURRENCY counts as unset; gunicorn itself would fail on it."""
    assert start_halt("http://127.0.0.1:9/v1", WEB_CONCURRENCY="").client().get("/").status == 200
