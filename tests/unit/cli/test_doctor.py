"""The doctor finds what ails the way to the model and the proxy before Halt, and says the cure."""

from __future__ import annotations

import re
import resource
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from halt.app import create_app
from halt.cli.doctor.proxy_checks import check_websocket, client_address_fault
from halt.cli.doctor.report import Report
from halt.cli.source import Remote
from halt.config.environment import load
from halt.config.proxies import ReceivedRequest
from halt.testing import work as fake_work
from halt.testing.fake_openai import FakeOpenAI
from tests.support.doctor_command import doctor, doctor_of_proxy
from tests.support.halt_server import HaltServer
from tests.support.raw_server import RawServer, answering
from tests.support.reverse_proxies import (
    binary,
    free_port,
    nginx_around,
    nginx_below_path,
    started_program,
)

PACED = "count?rate=60&n=30"  # slow enough to see whether something keeps words back


# --- the model ------------------------------------------------------------------------------------


def test_a_good_upstream_is_well(shared_fake: FakeOpenAI) -> None:
    """Name, connection, key, models, streaming, usage, Stop: each is looked at and is well."""
    found = doctor(OPENAI_BASE_URL=shared_fake.base_url, HALT_MODEL=PACED)
    assert found.exit_code == 0
    assert found.statuses() == {
        "open files": "ok",
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


def test_too_few_open_files_are_found(
    shared_fake: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A system that allows fewer than the streams take is said, with the setting."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 1024))
    found = doctor(OPENAI_BASE_URL=shared_fake.base_url, HALT_MODEL=PACED)
    assert found.statuses()["open files"] == "warn"
    said = "1,024 allowed, 1,504 needed for 500 streams."
    assert found.findings["open files"]["text"] == said
    assert "HALT_MAX_STREAMS" in found.remedy("open files")


def test_findings_are_lines_for_people_too(shared_fake: FakeOpenAI) -> None:
    """One line each: the status, the name, the words and, where it is not well, the remedy."""
    settings = {"OPENAI_BASE_URL": shared_fake.base_url, "OPENAI_API_KEY": "x", "HALT_MODEL": "401"}
    result = create_app(load(settings)).test_cli_runner().invoke(args=["doctor"])
    assert result.exit_code == 1
    lines = result.output.splitlines()
    assert re.fullmatch(r"ok    open files: [\d,]+ allowed, 1,504 needed for 500 streams", lines[0])
    assert lines[1].startswith("ok    name: 127.0.0.1 is 127.0.0.1")
    assert lines[-1] == (
        "fail  answer: The model's server did not accept the API key. "
        "It said: Incorrect API key provided: fake. "
        "Set OPENAI_API_KEY to a key of this server."
    )


def test_an_address_without_its_end_is_found(shared_fake: FakeOpenAI) -> None:
    """The doctor says what was asked, and how an address ends; so does the error of an answer."""
    address = shared_fake.base_url.removesuffix("/v1")
    found = doctor(OPENAI_BASE_URL=address)
    assert found.statuses()["models"] == "fail"
    assert f"The request was GET {address}/models: " in found.findings["models"]["text"]
    assert "up to and with /v1" in found.remedy("models")
    found = doctor(OPENAI_BASE_URL=address, HALT_MODEL="echo")
    assert found.statuses()["answer"] == "fail"
    assert f"The request was POST {address}/chat/completions: " in found.findings["answer"]["text"]


def test_every_provider_of_a_file_is_looked_at(shared_fake: FakeOpenAI, tmp_path: Path) -> None:
    """Findings bear its name, remedies name its own settings, and one's fault hides no other."""
    file = tmp_path / "halt.toml"
    file.write_text(
        f"""
        default = "claude/{PACED}"
        [providers.local]
        kind = "openai"
        base_url = "http://127.0.0.1:{free_port()}/v1"
        [providers.claude]
        kind = "anthropic"
        base_url = "{shared_fake.origin}"
        key_env = "KEY_OF_DOCTOR"
        models = ["echo", "{PACED}"]
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
    assert found.findings["claude: models"]["text"].endswith(f"{PACED} answers")
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
    assert found.statuses() == {"open files": "ok", "name": "ok", "connection": "fail"}
    assert "refuses connections" in found.findings["connection"]["text"]
    assert "OPENAI_BASE_URL" in found.remedy("connection")


def test_a_name_that_does_not_exist() -> None:
    """The name is said to be at fault."""
    found = doctor(OPENAI_BASE_URL="http://no-such-host.invalid/v1")
    assert found.statuses() == {"open files": "ok", "name": "fail"}
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
    assert found.statuses() == {
        "open files": "ok",
        "name": "ok",
        "connection": "ok",
        "TLS": "fail",
    }
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
    monkeypatch.setattr("halt.cli.doctor.server_load.PAUSES", (0.05,))
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
    monkeypatch.setattr("halt.cli.doctor.stop.WATCHED_AFTER_STOP", 0.3)
    model_server.work["/metrics"] = fake_work.metrics
    model_server.works_on = 60.0
    status, text = model_stop(model_server)
    assert status == "warn"
    assert re.fullmatch(
        r"the model continues: \d\.\d s after Stop the server still has a request "
        r"\(GET /metrics\)\.",
        text,
    )


def test_nothing_is_claimed_of_a_server_that_works_for_others(
    model_server: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests of others are counted as well, so the doctor does not tell them from its own."""
    monkeypatch.setattr("halt.cli.doctor.stop.IDLE_WITHIN", 0.2)
    model_server.work["/slots"] = fake_work.slots
    model_server.others = 2
    status, text = model_stop(model_server)
    assert status == "ok"
    assert text == "not known: the server has other requests at the same time (GET /slots)"


def test_others_that_come_after_the_stop_are_not_taken_for_the_own_answer(
    model_server: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than one request after the Stop: another client has come, and nothing is claimed."""
    monkeypatch.setattr("halt.cli.doctor.stop.WATCHED_AFTER_STOP", 0.2)

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
    assert text == "not known: this server does not report its running requests (docs/stop.md)"


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
def trusting(shared_fake: FakeOpenAI) -> Iterator[HaltServer]:
    """A Halt that is told of one proxy, whose model thinks for a while before it writes."""
    env = {
        "OPENAI_BASE_URL": shared_fake.base_url,
        "OPENAI_API_KEY": "fake",
        "HALT_MODEL": "silent_first_token?seconds=0.3&n=30&rate=60",
        "HALT_TRUSTED_PROXIES": "1",
    }
    server = HaltServer(env)
    yield server
    server.close()


#: Settings that are well, apart from what each way leaves out or adds.
STREAMS = "proxy_http_version 1.1; proxy_buffering off; client_max_body_size 0;"
UPGRADES = "proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection $upgraded;"
FORWARDS = "proxy_set_header X-Forwarded-For $remote_addr;"
SCHEME = "proxy_set_header X-Forwarded-Proto $scheme;"


@pytest.fixture(scope="module")
def proxies(
    tmp_path_factory: pytest.TempPathFactory,
    paced: HaltServer,
    silent: HaltServer,
    trusting: HaltServer,
) -> Iterator[dict[str, str]]:
    """nginx before Halt, set up well and badly: addresses by name. Those with "tls" have TLS."""
    program = binary("nginx")
    folder: Path = tmp_path_factory.mktemp("nginx")
    well = STREAMS + UPGRADES
    ways = {
        "good": (paced, well),
        "buffering": (paced, "proxy_http_version 1.0; proxy_ignore_headers X-Accel-Buffering;"),
        "packing": (
            paced,
            f"{well} gzip on; gzip_types text/event-stream; gzip_min_length 1; gzip_proxied any;",
        ),
        "both": (
            paced,
            "proxy_http_version 1.0; proxy_ignore_headers X-Accel-Buffering; gzip on; "
            "gzip_types text/event-stream; gzip_min_length 1; gzip_proxied any;",
        ),
        "impatient": (silent, "proxy_buffering off; proxy_read_timeout 1s;"),
        "good tls": (trusting, well + FORWARDS + SCHEME),
        "bare tls": (paced, well),
        "credulous": (trusting, well),
        "unknown": (paced, well + FORWARDS),
        "small": (paced, well.replace("size 0", "size 4m")),
        "plain": (paced, STREAMS),
        "deaf": (trusting, well + FORWARDS + "proxy_ignore_client_abort on;"),
    }
    #: In `credulous` /ws is the location in which the header was forgotten.
    more = {
        "credulous": f"location /chat/ {{ proxy_pass {trusting.url}; {well}{FORWARDS} "
        "proxy_set_header Host $http_host; }"
    }
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "authority.pem")
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(folder / "pem")
    tls = f"ssl_certificate {folder}/pem; ssl_certificate_key {folder}/pem;"
    ports = {name: free_port() for name in ways}
    servers = "".join(
        f"server {{ listen 127.0.0.1:{ports[name]}{' ssl' if 'tls' in name else ''}; "
        f"{tls if 'tls' in name else ''} {more.get(name, '')} "
        f"location / {{ proxy_pass {halt.url}; "
        f"proxy_set_header Host $http_host; {settings} }} }}\n"
        for name, (halt, settings) in ways.items()
    )
    upgraded = "map $http_upgrade $upgraded { default upgrade; '' ''; }\n"
    conf = folder / "nginx.conf"
    conf.write_text(nginx_around(folder, upgraded + servers))
    command = [program, "-p", str(folder), "-c", str(conf), "-e", "stderr"]
    with started_program(command, folder, *ports.values()), pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(folder / "authority.pem"))
        yield {
            name: f"{'https' if 'tls' in name else 'http'}://127.0.0.1:{port}"
            for name, port in ports.items()
        }


def test_a_good_proxy_is_well(proxies: dict[str, str]) -> None:
    """It streams, passes the headers, and Stop reaches the model."""
    found = doctor_of_proxy(proxies["good"])
    assert found.exit_code == 0
    assert set(found.statuses().values()) == {"ok"}, found.text
    assert set(found.findings) == {
        "name",
        "connection",
        "Halt",
        "headers",
        "client address",
        "uploads",
        "websocket",
        "stream headers",
        "buffering",
        "stop",
        "departure",
    }
    assert "was closed" in found.findings["stop"]["text"]


def test_a_good_proxy_with_tls_is_well(proxies: dict[str, str]) -> None:
    """The cookies are looked at as well, and a client that leaves before the first word."""
    found = doctor_of_proxy(proxies["good tls"])
    assert set(found.statuses().values()) == {"ok"}, found.text
    assert {"TLS", "cookies"} <= set(found.findings)
    assert "as reported by 1 proxy" in found.findings["client address"]["text"]
    assert "before the model writes" in found.findings["departure"]["text"]


def test_halt_without_a_proxy_is_well(paced: HaltServer) -> None:
    """The same without anything between."""
    assert set(doctor_of_proxy(paced.url).statuses().values()) == {"ok"}


@pytest.mark.parametrize("way", ["buffering", "packing", "both"])
def test_a_proxy_that_keeps_events_back_is_one_finding(proxies: dict[str, str], way: str) -> None:
    """By a buffer, a compressor or both: one finding, with one remedy in nginx's own words."""
    found = doctor_of_proxy(proxies[way])
    assert found.statuses()["buffering"] == "fail", found.text
    assert found.exit_code == 1
    assert "proxy_buffering off; gzip off;" in found.remedy("buffering")
    text = found.findings["buffering"]["text"]
    assert ("arrived within" in text) is (way != "packing")
    assert ("compresses streams for browsers (gzip)" in text) is (way != "buffering")
    assert "compression" not in found.findings


def test_a_header_that_one_location_forgets_is_found(proxies: dict[str, str]) -> None:
    """There a client can invent its address: the doctor looks at each kind of request."""
    found = doctor_of_proxy(proxies["credulous"])
    assert found.statuses()["client address"] == "fail", found.text
    assert found.findings["client address"]["text"].startswith("/ws: a client can invent")
    assert "proxy_set_header X-Forwarded-For $remote_addr;" in found.remedy("client address")


def test_proxies_that_halt_was_not_told_of_are_found(proxies: dict[str, str]) -> None:
    """All their clients count as one."""
    found = doctor_of_proxy(proxies["unknown"])
    assert found.statuses()["client address"] == "warn", found.text
    assert found.remedy("client address") == "Start Halt with HALT_TRUSTED_PROXIES=1."


def test_cookies_that_are_not_secure_are_found(proxies: dict[str, str]) -> None:
    """The cure is the header and the setting; the address is not known there either."""
    found = doctor_of_proxy(proxies["bare tls"])
    assert found.statuses()["cookies"] == "warn", found.text
    assert "X-Forwarded-Proto" in found.remedy("cookies")
    assert "HALT_TRUSTED_PROXIES=1" in found.remedy("cookies")
    assert found.statuses()["client address"] == "warn"
    assert "HALT_TRUSTED_PROXIES=1" in found.remedy("client address")


def test_files_that_the_proxy_refuses_are_found(proxies: dict[str, str]) -> None:
    """Halt would take 64 MB; nothing of it is sent."""
    found = doctor_of_proxy(proxies["small"])
    assert found.statuses()["uploads"] == "fail", found.text
    assert "status 413" in found.findings["uploads"]["text"]
    assert "client_max_body_size 100m;" in found.remedy("uploads")


def test_websockets_that_are_not_passed_on_are_found(proxies: dict[str, str]) -> None:
    """The remedy is nginx's own words."""
    found = doctor_of_proxy(proxies["plain"])
    assert found.statuses()["websocket"] == "fail", found.text
    assert "proxy_set_header Upgrade $http_upgrade;" in found.remedy("websocket")


def test_a_halt_below_a_path_is_one_finding(paced: HaltServer, tmp_path: Path) -> None:
    """The page's files are looked for where a browser looks; the rest is well all the same."""
    with nginx_below_path(tmp_path, paced.url) as proxy:
        found = doctor_of_proxy(f"{proxy}/halt/")
        assert [name for name, status in found.statuses().items() if status == "fail"] == ["path"]
        assert "below a path here" in found.findings["path"]["text"]
        assert "(status 404)" in found.findings["path"]["text"]
        assert "a host name of its own" in found.remedy("path")
        for path in ("/kept/", "/none"):  # Halt is told the path; nothing is there
            found = doctor_of_proxy(f"{proxy}{path}")
            assert found.statuses()["Halt"] == "fail"
            assert "a host name of its own" in found.remedy("Halt")
        assert "a host name of its own" not in doctor_of_proxy(proxy).remedy("Halt")


@pytest.mark.parametrize("head", [b"nonsense\r\n\r\n", b"x" * 70_000])
def test_an_answer_that_is_no_http_is_a_finding(head: bytes) -> None:
    """A server that speaks something else, or sends no end of a head, ends no examination."""
    report = Report(None)
    with RawServer(answering(head)) as server:
        check_websocket(report, Remote(f"http://127.0.0.1:{server.port}"), 5.0)
    (finding,) = report.findings
    assert (finding.name, finding.status) == ("websocket", "fail")


def test_a_proxy_that_does_not_tell_of_departures_is_found(proxies: dict[str, str]) -> None:
    """It is noticed when the model writes, not while it is silent; how long that took is said."""
    found = doctor_of_proxy(proxies["deaf"])
    assert found.statuses()["departure"] == "warn", found.text
    assert "only when the model wrote" in found.findings["departure"]["text"]
    assert "proxy_ignore_client_abort off;" in found.remedy("departure")
    assert found.exit_code == 0


@pytest.mark.parametrize(
    ("trusted", "plain", "forged", "status", "words"),
    [
        (0, 0, 1, "", ""),  # no proxy, or one that passes everything on
        (0, 0, 0, "warn", "HALT_TRUSTED_PROXIES=1"),  # the header is taken away
        (0, 2, 2, "warn", "HALT_TRUSTED_PROXIES=2"),
        (1, 1, 1, "", ""),  # replaced
        (1, 1, 2, "", ""),  # appended
        (1, 0, 1, "fail", "HALT_TRUSTED_PROXIES=0"),
        (1, 0, 0, "warn", "X-Forwarded-For"),
        (1, 2, 3, "warn", "HALT_TRUSTED_PROXIES=2"),
        (2, 1, 2, "fail", "HALT_TRUSTED_PROXIES=1"),
        (2, 1, 1, "warn", "HALT_TRUSTED_PROXIES=1"),
        (3, 1, 2, "fail", "HALT_TRUSTED_PROXIES=1"),  # by two values of a client's own
    ],
)
def test_every_mismatch_of_proxies_has_its_remedy(
    trusted: int, plain: int, forged: int, status: str, words: str
) -> None:
    """Numbers of values in X-Forwarded-For, without and with one that the client has written."""
    found = client_address_fault(
        ReceivedRequest(trusted, plain, False, 0), ReceivedRequest(trusted, forged, False, 0), False
    )
    assert (found is None) is (status == "")
    if found is not None:
        forgeable, _, remedy = found
        assert forgeable is (status == "fail")
        assert words in remedy


def test_a_proxy_that_hangs_up_in_silence_is_found(proxies: dict[str, str]) -> None:
    """Its idle timeout is shorter than the heartbeat: both cures are named."""
    found = doctor_of_proxy(proxies["impatient"])
    assert found.statuses()["idle timeout"] == "fail", found.text
    assert "proxy_read_timeout" in found.remedy("idle timeout")
    assert "HALT_HEARTBEAT" in found.remedy("idle timeout")


def test_what_is_no_halt_is_said_to_be_none(shared_fake: FakeOpenAI) -> None:
    """An address where something else answers."""
    found = doctor_of_proxy(shared_fake.base_url)
    assert found.statuses()["Halt"] == "fail"


def test_a_token_that_is_missing_is_asked_for(start_halt: Any, shared_fake: FakeOpenAI) -> None:
    """Without the token the streams are not looked at, and the cure is named."""
    halt = start_halt(shared_fake, HALT_TOKEN="open-sesame", HALT_MODEL=PACED)
    found = doctor_of_proxy(halt.url)
    assert found.statuses()["token"] == "fail"
    assert "HALT_TOKEN" in found.remedy("token")
    assert doctor_of_proxy(halt.url, "--token", "open-sesame").exit_code == 0


def test_a_public_name_that_nobody_listens_at() -> None:
    """It is the address that is at fault, not the model."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        found = doctor_of_proxy(f"http://127.0.0.1:{reserved.getsockname()[1]}")
    assert found.statuses()["connection"] == "fail"
