"""The doctor finds what ails the way to the model and the proxy before Halt, and says the cure."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from app import create_app
from halt.config import load
from tests import fake_work
from tests.conftest import HaltServer
from tests.fake_openai import FakeOpenAI
from tests.test_deployment import _wait_listening, free_port

PACED = "count?rate=60&n=30"  # slow enough to see whether something keeps words back


class Found(NamedTuple):
    """What the doctor has said."""

    exit_code: int
    findings: dict[str, Any]
    text: str

    def remedy(self, name: str) -> str:
        """What is to be done about this."""
        return str(self.findings[name]["remedy"])

    def statuses(self) -> dict[str, str]:
        """Each finding's status."""
        return {name: str(f["status"]) for name, f in self.findings.items()}


def doctor(*args: str, **settings: str) -> Found:
    """Run the command with these settings."""
    application = create_app(load({"OPENAI_API_KEY": "fake-key-of-tests", **settings}))
    result = application.test_cli_runner().invoke(args=["doctor", *args, "--json"])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
    assert "fake-key-of-tests" not in result.output
    said = json.loads(result.output)
    assert said["ok"] == (result.exit_code == 0)
    findings = {f["name"]: f for f in said["findings"]}
    assert all(f["remedy"] for f in findings.values() if f["status"] != "ok")
    return Found(result.exit_code, findings, result.output)


# --- the model ------------------------------------------------------------------------------------


def test_a_good_upstream_is_well(shared_fake: FakeOpenAI) -> None:
    """Name, connection, key, models, streaming, usage, Stop: each is looked at and is well."""
    found = doctor(OPENAI_BASE_URL=shared_fake.base_url, HALT_MODEL=PACED)
    assert found.exit_code == 0
    assert found.statuses() == {
        "name": "ok",
        "connection": "ok",
        "key": "ok",
        "models": "warn",  # the fake's list does not name this scenario with its arguments
        "answer": "ok",
        "streaming": "ok",
        "usage": "ok",
        "stop": "ok",
        "model stop": "ok",
        "tools": "ok",
        "reasoning": "ok",
    }
    assert "30 pieces, one by one" in found.findings["streaming"]["text"]
    assert "was closed" in found.findings["stop"]["text"]


def test_the_data_folder_is_not_needed(shared_fake: FakeOpenAI, tmp_path: Path) -> None:
    """What the doctor says does not depend on whether Halt could keep anything."""
    (tmp_path / "file").write_text("")
    data = str(tmp_path / "file" / "halt")
    found = doctor(OPENAI_BASE_URL=shared_fake.base_url, HALT_MODEL=PACED, HALT_DATA=data)
    assert found.exit_code == 0
    assert found.findings["answer"]["status"] == "ok"


def test_findings_are_lines_for_people_too(shared_fake: FakeOpenAI) -> None:
    """One line each: the status, the name, the words and, where it is not well, the remedy."""
    settings = {"OPENAI_BASE_URL": shared_fake.base_url, "OPENAI_API_KEY": "x", "HALT_MODEL": "401"}
    result = create_app(load(settings)).test_cli_runner().invoke(args=["doctor"])
    assert result.exit_code == 1
    lines = result.output.splitlines()
    assert lines[0].startswith("ok    name: 127.0.0.1 is 127.0.0.1")
    assert lines[-1] == (
        "fail  answer: The model's server did not accept the API key. "
        "Set OPENAI_API_KEY to a key of this server."
    )


def test_an_address_without_its_end_is_found(shared_fake: FakeOpenAI) -> None:
    """The doctor says what was asked, and how an address ends; so does the error of an answer."""
    address = shared_fake.base_url.removesuffix("/v1")
    found = doctor(OPENAI_BASE_URL=address)
    assert found.statuses()["models"] == "fail"
    assert "Asked was GET /models: " in found.findings["models"]["text"]
    assert "up to and with /v1" in found.remedy("models")
    found = doctor(OPENAI_BASE_URL=address, HALT_MODEL="echo")
    assert found.statuses()["answer"] == "fail"
    assert "Asked was POST /chat/completions: " in found.findings["answer"]["text"]


def test_every_provider_of_a_file_is_looked_at(shared_fake: FakeOpenAI, tmp_path: Path) -> None:
    """Findings bear its name, remedies name its own settings, and one's fault hides no other."""
    file = tmp_path / "halt.toml"
    file.write_text(
        f"""
        default = "claude/count?n=20"
        [providers.local]
        kind = "openai"
        base_url = "http://127.0.0.1:{free_port()}/v1"
        [providers.claude]
        kind = "anthropic"
        base_url = "{shared_fake.origin}"
        key_env = "KEY_OF_DOCTOR"
        models = ["echo", "count?n=20"]
        [providers.work]
        kind = "azure"
        endpoint = "{shared_fake.origin}"
        key_env = "KEY_OF_DOCTOR"
        models = ["401", "echo"]
        """
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KEY_OF_DOCTOR", "fake-key-of-tests")
        found = doctor(HALT_CONFIG=str(file))
    statuses = found.statuses()
    assert found.exit_code == 1
    assert statuses["local: connection"] == "fail"
    assert "base_url of [providers.local]" in found.remedy("local: connection")
    assert found.findings["claude: models"]["text"].endswith("count?n=20 answers")
    assert (statuses["claude: answer"], statuses["claude: stop"]) == ("ok", "ok")
    assert statuses["work: models"] == "ok"
    assert statuses["work: answer"] == "fail"
    assert "key_env of [providers.work]" in found.remedy("work: answer")


def test_azure_and_anthropic_of_the_environment_are_looked_at(shared_fake: FakeOpenAI) -> None:
    """Each by its own address, key and model, whatever HALT_MODEL says of the other."""
    found = doctor(
        OPENAI_API_KEY="",
        AZURE_OPENAI_ENDPOINT=shared_fake.origin,
        AZURE_OPENAI_API_KEY="fake-key-of-tests",
        AZURE_OPENAI_DEPLOYMENT="count?n=20",
        ANTHROPIC_BASE_URL=f"http://127.0.0.1:{free_port()}",
        ANTHROPIC_API_KEY="fake-key-of-tests",
        HALT_MODEL="anthropic/echo",
    )
    assert found.findings["azure: models"]["text"].endswith("count?n=20 answers")
    assert found.statuses()["azure: answer"] == "ok"
    assert "ANTHROPIC_BASE_URL" in found.remedy("anthropic: connection")


def test_a_server_that_refuses_connections() -> None:
    """The port is named, and what to do."""
    found = doctor(OPENAI_BASE_URL=f"http://127.0.0.1:{free_port()}/v1")
    assert found.exit_code == 1
    assert found.statuses() == {"name": "ok", "connection": "fail"}
    assert "refuses connections" in found.findings["connection"]["text"]
    assert "OPENAI_BASE_URL" in found.remedy("connection")


def test_a_name_that_does_not_exist() -> None:
    """The name is said to be at fault."""
    found = doctor(OPENAI_BASE_URL="http://no-such-host.invalid/v1")
    assert found.statuses() == {"name": "fail"}
    assert "no-such-host.invalid" in found.findings["name"]["text"]


def test_a_server_that_is_silent(shared_fake: FakeOpenAI) -> None:
    """It is given up after --timeout, and the cure is at the model's server."""
    found = doctor(
        "--timeout", "0.5", OPENAI_BASE_URL=shared_fake.base_url, HALT_MODEL="silent_headers"
    )
    assert found.statuses()["answer"] == "fail"
    assert "did not begin to answer in time" in found.findings["answer"]["text"]
    assert "busy" in found.remedy("answer")


def test_a_port_where_connecting_hangs() -> None:
    """A firewall is suspected."""
    with FakeOpenAI.unaccepting() as url:
        found = doctor(OPENAI_BASE_URL=url, HALT_CONNECT_TIMEOUT="0.2")
    assert found.statuses()["connection"] == "fail"
    assert "firewall" in found.remedy("connection")


def test_a_certificate_that_nobody_trusts() -> None:
    """TLS is looked at by itself."""
    with FakeOpenAI(tls=True) as fake:
        found = doctor(OPENAI_BASE_URL=fake.base_url)
    assert found.statuses() == {"name": "ok", "connection": "ok", "TLS": "fail"}
    assert "SSL_CERT_FILE" in found.remedy("TLS")


def test_pieces_that_something_gathers(shared_fake: FakeOpenAI) -> None:
    """Many pieces in few lumps: a proxy before the model is suspected."""
    model = "count?n=60&burst=30&gap_ms=5"
    found = doctor(OPENAI_BASE_URL=shared_fake.base_url, HALT_MODEL=model)
    assert found.statuses()["streaming"] == "warn"
    assert "proxy_buffering off" in found.remedy("streaming")


def test_usage_that_is_not_reported(shared_fake: FakeOpenAI) -> None:
    """Then counts are estimated, and the doctor says so."""
    found = doctor(OPENAI_BASE_URL=shared_fake.base_url, HALT_MODEL="no_usage")
    assert found.statuses()["usage"] == "warn"


# --- whether the model stops ----------------------------------------------------------------------


@pytest.fixture
def model_server() -> Iterator[FakeOpenAI]:
    """A model's server that can be made to tell what it works on."""
    with FakeOpenAI(unknown_model="echo") as fake:
        yield fake


def model_stop(fake: FakeOpenAI) -> tuple[str, str]:
    """Status and words of the finding on whether the model stops."""
    found = doctor(OPENAI_BASE_URL=fake.base_url, HALT_MODEL=PACED).findings["model stop"]
    return str(found["status"]), str(found["text"])


def test_a_model_that_stops_is_seen_to_stop(model_server: FakeOpenAI) -> None:
    """Where the server tells what it works on, the time until it is idle is measured.

    It is asked with the key of the answers.
    """
    model_server.work["/slots"] = fake_work.slots
    status, text = model_stop(model_server)
    assert status == "ok"
    assert re.fullmatch(r"the model had stopped \d+ ms after Stop \(GET /slots\)", text)
    asked = [each for each in model_server.requests if each.path == "/slots"]
    assert {each.headers["authorization"] for each in asked} == {"Bearer fake-key-of-tests"}


def test_a_model_that_writes_on_for_a_while_is_a_warning(
    model_server: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last look that found it at work and the first that did not are said, in seconds."""
    monkeypatch.setattr("halt.server_load.PAUSES", (0.05,))
    model_server.work["/slots"] = fake_work.slots
    model_server.works_on = 1.2
    status, text = model_stop(model_server)
    assert status == "warn"
    assert re.fullmatch(
        r"the model stopped [1-3]\.\d to [1-4]\.\d s after Stop \(GET /slots\)\.", text
    )


def test_a_model_that_writes_on_is_a_warning(
    model_server: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is looked at for a limited time, and the finding says for how long."""
    monkeypatch.setattr("halt.doctor.WATCHED_AFTER_STOP", 0.3)
    model_server.work["/metrics"] = fake_work.metrics
    model_server.works_on = 60.0
    status, text = model_stop(model_server)
    assert status == "warn"
    assert re.fullmatch(
        r"the model writes on: \d\.\d s after Stop the server still works on a request "
        r"\(GET /metrics\)\.",
        text,
    )


def test_nothing_is_claimed_of_a_server_that_works_for_others(
    model_server: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests of others are counted as well, so the doctor does not tell them from its own."""
    monkeypatch.setattr("halt.doctor.SETTLES_WITHIN", 0.2)
    model_server.work["/slots"] = fake_work.slots
    model_server.others = 2
    status, text = model_stop(model_server)
    assert status == "ok"
    assert text == "not known: the server works on other requests at the same time (GET /slots)"


def test_others_that_come_after_the_stop_are_not_taken_for_the_own_answer(
    model_server: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than one request after the Stop: another client has come, and nothing is claimed."""
    monkeypatch.setattr("halt.doctor.WATCHED_AFTER_STOP", 0.2)

    def answer(in_work: int) -> tuple[int, str, bytes]:
        stopped = any(each.closed.is_set() for each in model_server.requests)
        return fake_work.slots(2 if stopped else in_work)

    model_server.work["/slots"] = answer
    status, text = model_stop(model_server)
    assert (status, text.partition(":")[0]) == ("ok", "not known")


def test_nothing_is_claimed_of_a_server_that_does_not_count_the_answer(
    model_server: FakeOpenAI,
) -> None:
    """One that is idle while it answers is another server, or counts late: it proves nothing."""
    model_server.work["/slots"] = lambda _: fake_work.slots(0)
    status, text = model_stop(model_server)
    assert status == "ok"
    assert text == "not known: this server does not say what it works on (docs/stop.md)"


# --- what stands before Halt ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def paced(shared_fake: FakeOpenAI) -> Iterator[HaltServer]:
    """A Halt whose model writes at a human pace."""
    env = {"OPENAI_BASE_URL": shared_fake.base_url, "OPENAI_API_KEY": "fake", "HALT_MODEL": PACED}
    server = HaltServer(env)
    yield server
    server.close()


@pytest.fixture(scope="module")
def silent(shared_fake: FakeOpenAI) -> Iterator[HaltServer]:
    """A Halt whose model says nothing, with its usual heartbeat of ten seconds."""
    model = "silent_first_token"
    env = {"OPENAI_BASE_URL": shared_fake.base_url, "OPENAI_API_KEY": "fake", "HALT_MODEL": model}
    server = HaltServer(env)
    yield server
    server.close()


@pytest.fixture(scope="module")
def proxies(
    tmp_path_factory: pytest.TempPathFactory, paced: HaltServer, silent: HaltServer
) -> Iterator[dict[str, str]]:
    """nginx before Halt, set up well and in three ways badly: addresses by name."""
    binary = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
    if binary is None:
        pytest.skip("nginx is not installed (apt install nginx)")
    folder: Path = tmp_path_factory.mktemp("nginx")
    ways = {
        "good": (paced, "proxy_http_version 1.1; proxy_buffering off;"),
        "buffering": (paced, "proxy_http_version 1.0; proxy_ignore_headers X-Accel-Buffering;"),
        "packing": (
            paced,
            "proxy_buffering off; gzip on; gzip_types text/event-stream; gzip_min_length 1; "
            "gzip_proxied any;",
        ),
        "impatient": (silent, "proxy_buffering off; proxy_read_timeout 1s;"),
    }
    ports = {name: free_port() for name in ways}
    servers = "".join(
        f"server {{ listen 127.0.0.1:{ports[name]}; location / {{ proxy_pass {halt.url}; "
        f"proxy_set_header Host $http_host; {settings} }} }}\n"
        for name, (halt, settings) in ways.items()
    )
    temporary = "".join(
        f"{kind}_temp_path {folder}/{kind};"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    conf = folder / "nginx.conf"
    conf.write_text(
        f"daemon off; pid {folder}/pid; error_log stderr crit; events {{}}\n"
        f"http {{ access_log off; {temporary}\n{servers}}}"
    )
    process = subprocess.Popen(
        [binary, "-p", str(folder), "-c", str(conf), "-e", "stderr"],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        for port in ports.values():
            _wait_listening(port, process)
        yield {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}
    finally:
        process.terminate()
        process.communicate(timeout=10)


def outside(url: str, *args: str) -> Found:
    """Look at a Halt from outside alone: no model is set up here."""
    return doctor(url, *args, OPENAI_API_KEY="")


def test_a_good_proxy_is_well(proxies: dict[str, str]) -> None:
    """It streams, passes the headers, and Stop reaches the model."""
    found = outside(proxies["good"])
    assert found.exit_code == 0
    assert set(found.statuses().values()) == {"ok"}, found.text
    assert {"Halt", "headers", "compression", "stream headers", "buffering", "stop"} <= set(
        found.findings
    )
    assert "was closed" in found.findings["stop"]["text"]


def test_halt_without_a_proxy_is_well(paced: HaltServer) -> None:
    """The same without anything between."""
    assert set(outside(paced.url).statuses().values()) == {"ok"}


def test_a_proxy_that_buffers_is_found(proxies: dict[str, str]) -> None:
    """The answer's words all arrive at its end: the remedy is nginx's own word."""
    found = outside(proxies["buffering"])
    assert found.statuses()["buffering"] == "fail", found.text
    assert found.exit_code == 1
    assert "proxy_buffering off;" in found.remedy("buffering")


def test_a_proxy_that_packs_is_found(proxies: dict[str, str]) -> None:
    """A compressed stream is told from a plain one."""
    found = outside(proxies["packing"])
    assert found.statuses()["compression"] == "fail", found.text
    assert "gzip off;" in found.remedy("compression"), found.findings["compression"]


def test_a_proxy_that_hangs_up_in_silence_is_found(proxies: dict[str, str]) -> None:
    """Its idle timeout is shorter than the heartbeat: both cures are named."""
    found = outside(proxies["impatient"])
    assert found.statuses()["idle timeout"] == "fail", found.text
    assert "proxy_read_timeout" in found.remedy("idle timeout")
    assert "HALT_HEARTBEAT" in found.remedy("idle timeout")


def test_what_is_no_halt_is_said_to_be_none(shared_fake: FakeOpenAI) -> None:
    """An address where something else answers."""
    found = outside(shared_fake.base_url)
    assert found.statuses()["Halt"] == "fail"


def test_a_token_that_is_missing_is_asked_for(start_halt: Any, shared_fake: FakeOpenAI) -> None:
    """Without the token the streams are not looked at, and the cure is named."""
    halt = start_halt(shared_fake, HALT_TOKEN="open-sesame", HALT_MODEL=PACED)
    found = outside(halt.url)
    assert found.statuses()["token"] == "fail"
    assert "HALT_TOKEN" in found.remedy("token")
    assert outside(halt.url, "--token", "open-sesame").exit_code == 0


def test_a_public_name_that_nobody_listens_at() -> None:
    """It is the address that is at fault, not the model."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        found = outside(f"http://127.0.0.1:{reserved.getsockname()[1]}")
    assert found.statuses()["connection"] == "fail"
