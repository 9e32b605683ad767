"""The command `doctor`: sign-ins, no model, and faults of the proxies before Halt, with remedies."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from halt.cli.doctor.proxy_checks import check_websocket, client_address_fault
from halt.cli.source import Remote
from halt.config.proxies import ReceivedRequest
from halt.doctor.report import Report
from halt.providers import embedded_model
from halt.testing.fake_openai import FakeOpenAI
from tests.support.doctor_command import (
    ENDLESS,
    PACED,
    TWO_SECONDS,
    doctor,
    doctor_of_proxy,
)
from tests.support.halt_server import HaltServer
from tests.support.oidc_provider import OidcProvider
from tests.support.ports import free_port
from tests.support.raw_server import RawServer, answering
from tests.support.reverse_proxies import (
    binary,
    nginx_around,
    nginx_below_path,
    started_program,
)


@pytest.fixture(autouse=True)
def patient_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Long answers run until their Stop, however slow the machine."""
    monkeypatch.setattr("halt.cli.doctor.proxy_streams.LONG", ENDLESS)


@pytest.fixture
def slow_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The complete answer takes two seconds, so that no delay of this machine looks like a buffer."""
    monkeypatch.setattr("halt.cli.doctor.proxy_streams.SHORT", TWO_SECONDS)


def test_doctor_checks_the_provider_of_sign_ins(shared_fake: FakeOpenAI) -> None:
    """With OpenID Connect the doctor asks the provider for its description and its keys."""
    settings = {"OPENAI_BASE_URL": shared_fake.base_url, "HALT_MODEL": "echo"}
    with OidcProvider() as provider:
        assert doctor(**settings, **provider.settings).statuses()["sign-in"] == "ok"
        provider.faults.add("other metadata")
        report = doctor(**settings, **provider.settings)
    assert report.statuses()["sign-in"] == "fail"
    assert "calls itself" in report.text_of("sign-in")
    assert "HALT_OIDC_ISSUER" in report.remedy("sign-in")


# --- what stands before Halt ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def paced_halt(shared_fake: FakeOpenAI) -> Iterator[HaltServer]:
    """A Halt whose model sends at the speed of reading."""
    env = {"OPENAI_BASE_URL": shared_fake.base_url, "OPENAI_API_KEY": "fake", "HALT_MODEL": PACED}
    server = HaltServer(env)
    yield server
    server.close()


@pytest.fixture(scope="module")
def silent_halt(shared_fake: FakeOpenAI) -> Iterator[HaltServer]:
    """A Halt whose model sends nothing, with the usual heartbeat of ten seconds."""
    model = "silent_first_token"
    env = {"OPENAI_BASE_URL": shared_fake.base_url, "OPENAI_API_KEY": "fake", "HALT_MODEL": model}
    server = HaltServer(env)
    yield server
    server.close()


@pytest.fixture(scope="module")
def trusting_halt(shared_fake: FakeOpenAI) -> Iterator[HaltServer]:
    """A Halt behind one trusted proxy, whose model is silent for a while before it sends."""
    env = {
        "OPENAI_BASE_URL": shared_fake.base_url,
        "OPENAI_API_KEY": "fake",
        "HALT_MODEL": "silent_first_token?seconds=0.3&n=30&rate=60",
        "HALT_TRUSTED_PROXIES": "1",
    }
    server = HaltServer(env)
    yield server
    server.close()


#: Right settings; each proxy below leaves out or adds some.
STREAMS = "proxy_http_version 1.1; proxy_buffering off; client_max_body_size 0;"
UPGRADES = "proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection $upgraded;"
FORWARDS = "proxy_set_header X-Forwarded-For $remote_addr;"
SCHEME = "proxy_set_header X-Forwarded-Proto $scheme;"


@pytest.fixture(scope="module")
def proxies(
    tmp_path_factory: pytest.TempPathFactory,
    paced_halt: HaltServer,
    silent_halt: HaltServer,
    trusting_halt: HaltServer,
) -> Iterator[dict[str, str]]:
    """nginx before Halt with right and wrong settings: addresses by name. "tls" ones have TLS."""
    program = binary("nginx")
    folder: Path = tmp_path_factory.mktemp("nginx")
    right_settings = STREAMS + UPGRADES
    server_settings = {
        "good": (paced_halt, right_settings),
        "buffering": (
            paced_halt,
            "proxy_http_version 1.0; proxy_ignore_headers X-Accel-Buffering;",
        ),
        "packing": (
            paced_halt,
            f"{right_settings} gzip on; gzip_types text/event-stream; gzip_min_length 1; gzip_proxied any;",
        ),
        "both": (
            paced_halt,
            "proxy_http_version 1.0; proxy_ignore_headers X-Accel-Buffering; gzip on; "
            "gzip_types text/event-stream; gzip_min_length 1; gzip_proxied any;",
        ),
        "impatient": (silent_halt, "proxy_buffering off; proxy_read_timeout 1s;"),
        "good tls": (trusting_halt, right_settings + FORWARDS + SCHEME),
        "bare tls": (paced_halt, right_settings),
        "credulous": (trusting_halt, right_settings),
        "unknown": (paced_halt, right_settings + FORWARDS),
        "small": (paced_halt, right_settings.replace("size 0", "size 4m")),
        "plain": (paced_halt, STREAMS),
        "deaf": (trusting_halt, right_settings + FORWARDS + "proxy_ignore_client_abort on;"),
    }
    #: In `credulous` /ws is the location in which the header was forgotten.
    extra_locations = {
        "credulous": f"location /chat/ {{ proxy_pass {trusting_halt.url}; {right_settings}{FORWARDS} "
        "proxy_set_header Host $http_host; }"
    }
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "authority.pem")
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(folder / "pem")
    tls = f"ssl_certificate {folder}/pem; ssl_certificate_key {folder}/pem;"
    ports = {name: free_port() for name in server_settings}
    servers = "".join(
        f"server {{ listen 127.0.0.1:{ports[name]}{' ssl' if 'tls' in name else ''}; "
        f"{tls if 'tls' in name else ''} {extra_locations.get(name, '')} "
        f"location / {{ proxy_pass {halt.url}; "
        f"proxy_set_header Host $http_host; {settings} }} }}\n"
        for name, (halt, settings) in server_settings.items()
    )
    upgrade_map = "map $http_upgrade $upgraded { default upgrade; '' ''; }\n"
    conf = folder / "nginx.conf"
    conf.write_text(nginx_around(folder, upgrade_map + servers))
    command = [program, "-p", str(folder), "-c", str(conf), "-e", "stderr"]
    with started_program(command, folder, *ports.values()), pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(folder / "authority.pem"))
        yield {
            name: f"{'https' if 'tls' in name else 'http'}://127.0.0.1:{port}"
            for name, port in ports.items()
        }


@pytest.mark.usefixtures("slow_answer")
def test_doctor_of_a_good_proxy_has_only_good_findings(proxies: dict[str, str]) -> None:
    """The proxy streams and passes the headers, and a Stop reaches the model."""
    report = doctor_of_proxy(proxies["good"])
    assert report.exit_code == 0
    assert set(report.statuses().values()) == {"ok"}, report.text
    assert set(report.findings) == {
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
    assert "was closed" in report.findings["stop"]["text"]


@pytest.mark.usefixtures("slow_answer")
def test_doctor_of_a_good_tls_proxy_has_only_good_findings(proxies: dict[str, str]) -> None:
    """Through a good TLS proxy all findings are good, also for cookies and a client that leaves
    early.
    """
    report = doctor_of_proxy(proxies["good tls"])
    assert set(report.statuses().values()) == {"ok"}, report.text
    assert {"TLS", "cookies"} <= set(report.findings)
    assert "as reported by 1 proxy" in report.findings["client address"]["text"]
    assert "before the model writes" in report.findings["departure"]["text"]


@pytest.mark.usefixtures("slow_answer")
def test_doctor_of_halt_without_a_proxy_has_only_good_findings(paced_halt: HaltServer) -> None:
    """All checks are good without a proxy between."""
    assert set(doctor_of_proxy(paced_halt.url).statuses().values()) == {"ok"}


@pytest.mark.parametrize("proxy_name", ["buffering", "packing", "both"])
def test_doctor_reports_a_buffering_proxy_as_one_finding(
    proxies: dict[str, str], proxy_name: str
) -> None:
    """A proxy that buffers, compresses or both is one finding with one remedy in nginx's
    own words.
    """
    report = doctor_of_proxy(proxies[proxy_name])
    assert report.statuses()["buffering"] == "fail", report.text
    assert report.exit_code == 1
    assert "proxy_buffering off; gzip off;" in report.remedy("buffering")
    text = report.findings["buffering"]["text"]
    assert ("arrived within" in text) is (proxy_name != "packing")
    assert ("compresses streams for browsers (gzip)" in text) is (proxy_name != "buffering")
    assert "compression" not in report.findings


def test_doctor_finds_a_location_without_the_forwarding_header(proxies: dict[str, str]) -> None:
    """A location without the forwarding header, where clients can forge addresses, is found for
    each kind of request.
    """
    report = doctor_of_proxy(proxies["credulous"])
    assert report.statuses()["client address"] == "fail", report.text
    assert report.findings["client address"]["text"].startswith("/ws: a client can invent")
    assert "proxy_set_header X-Forwarded-For $remote_addr;" in report.remedy("client address")


def test_doctor_warns_of_a_proxy_that_is_not_trusted(proxies: dict[str, str]) -> None:
    """A proxy that is not trusted, whose clients all count as one, is a warning that names the
    setting.
    """
    report = doctor_of_proxy(proxies["unknown"])
    assert report.statuses()["client address"] == "warn", report.text
    assert report.remedy("client address") == "Start Halt with HALT_TRUSTED_PROXIES=1."


def test_doctor_warns_of_cookies_that_are_not_secure(proxies: dict[str, str]) -> None:
    """Cookies that are not Secure are a warning that names the header and the setting."""
    report = doctor_of_proxy(proxies["bare tls"])
    assert report.statuses()["cookies"] == "warn", report.text
    assert "X-Forwarded-Proto" in report.remedy("cookies")
    assert "HALT_TRUSTED_PROXIES=1" in report.remedy("cookies")
    assert report.statuses()["client address"] == "warn"
    assert "HALT_TRUSTED_PROXIES=1" in report.remedy("client address")


def test_doctor_finds_a_proxy_that_refuses_large_uploads(proxies: dict[str, str]) -> None:
    """A proxy whose limit for uploads is below Halt's 64 MB is found without sending that much."""
    report = doctor_of_proxy(proxies["small"])
    assert report.statuses()["uploads"] == "fail", report.text
    assert "status 413" in report.findings["uploads"]["text"]
    assert "client_max_body_size 100m;" in report.remedy("uploads")


def test_doctor_finds_a_proxy_without_websockets(proxies: dict[str, str]) -> None:
    """A proxy that passes no WebSockets is a finding with the remedy in nginx's own words."""
    report = doctor_of_proxy(proxies["plain"])
    assert report.statuses()["websocket"] == "fail", report.text
    assert "proxy_set_header Upgrade $http_upgrade;" in report.remedy("websocket")


@pytest.mark.slow
@pytest.mark.usefixtures("slow_answer")
def test_doctor_reports_a_halt_below_a_path_as_one_finding(
    paced_halt: HaltServer, tmp_path: Path
) -> None:
    """A Halt below a path is one finding, about the page's files; all other checks are good."""
    with nginx_below_path(tmp_path, paced_halt.url) as proxy:
        report = doctor_of_proxy(f"{proxy}/halt/")
        assert [name for name, status in report.statuses().items() if status == "fail"] == ["path"]
        assert "below a path here" in report.findings["path"]["text"]
        assert "(status 404)" in report.findings["path"]["text"]
        assert "a host name of its own" in report.remedy("path")
        for path in ("/kept/", "/none"):  # Halt gets the path; nothing is there
            report = doctor_of_proxy(f"{proxy}{path}")
            assert report.statuses()["Halt"] == "fail"
            assert "a host name of its own" in report.remedy("Halt")
        assert "a host name of its own" not in doctor_of_proxy(proxy).remedy("Halt")


@pytest.mark.parametrize("response_head", [b"nonsense\r\n\r\n", b"x" * 70_000])
def test_check_websocket_of_a_server_without_http_is_a_finding(response_head: bytes) -> None:
    """A server of another protocol, or without an end of the head, is a finding and no
    exception.
    """
    report = Report(None)
    with RawServer(answering(response_head)) as server:
        check_websocket(report, Remote(f"http://127.0.0.1:{server.port}"), 5.0)
    (finding,) = report.findings
    assert (finding.name, finding.status) == ("websocket", "fail")


def test_doctor_warns_of_a_proxy_that_hides_departures(proxies: dict[str, str]) -> None:
    """A proxy that hides a client's departure during silence is a warning with the time until it
    was noticed.
    """
    report = doctor_of_proxy(proxies["deaf"])
    assert report.statuses()["departure"] == "warn", report.text
    assert "only when the model wrote" in report.findings["departure"]["text"]
    assert "proxy_ignore_client_abort off;" in report.remedy("departure")
    assert report.exit_code == 0


@pytest.mark.parametrize(
    ("trusted_proxies", "plain_values", "forged_values", "status", "remedy_part"),
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
        (
            3,
            1,
            2,
            "fail",
            "HALT_TRUSTED_PROXIES=1",
        ),  # a client that sends two values can invent its address
    ],
)
def test_client_address_fault_has_a_remedy_for_each_mismatch(
    trusted_proxies: int, plain_values: int, forged_values: int, status: str, remedy_part: str
) -> None:
    """Each mismatch of the numbers of forwarded addresses, without and with a forged one, has its
    remedy.
    """
    fault = client_address_fault(
        ReceivedRequest(trusted_proxies, plain_values, False, 0),
        ReceivedRequest(trusted_proxies, forged_values, False, 0),
        False,
    )
    assert (fault is None) is (status == "")
    if fault is not None:
        is_forgeable, _, remedy = fault
        assert is_forgeable is (status == "fail")
        assert remedy_part in remedy


def test_doctor_finds_a_proxy_that_closes_silent_streams(proxies: dict[str, str]) -> None:
    """A proxy whose idle timeout is below the heartbeat is a finding that names both remedies."""
    report = doctor_of_proxy(proxies["impatient"])
    assert report.statuses()["idle timeout"] == "fail", report.text
    assert "proxy_read_timeout" in report.remedy("idle timeout")
    assert "HALT_HEARTBEAT" in report.remedy("idle timeout")


def test_doctor_names_an_address_without_a_halt(shared_fake: FakeOpenAI) -> None:
    """An address of another server fails the check for Halt and is named."""
    report = doctor_of_proxy(shared_fake.base_url)
    assert report.statuses()["Halt"] == "fail"


def test_doctor_without_a_model_names_the_reason_and_the_next_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without a model the finding has the reason, and its remedy is the way to the demo model."""
    fault = embedded_model.Fault("The demo model is not installed", "run `it`")
    monkeypatch.setattr(embedded_model, "unavailable", lambda: fault)
    report = doctor(OPENAI_API_KEY="", HALT_DISCOVER="0")
    assert report.text_of("model") == "The demo model is not installed."
    assert report.remedy("model").startswith("Run `it`, or connect another model")


@pytest.mark.slow
@pytest.mark.usefixtures("slow_answer")
def test_doctor_names_a_missing_token(start_halt: Any, shared_fake: FakeOpenAI) -> None:
    """Without the token the streams are not checked, and the finding names the remedy."""
    halt = start_halt(shared_fake, HALT_TOKEN="open-sesame", HALT_MODEL=PACED)
    report = doctor_of_proxy(halt.url)
    assert report.statuses()["token"] == "fail"
    assert "HALT_TOKEN" in report.remedy("token")
    assert "an access token is needed" in report.text_of("token")
    assert "the access token is wrong" in doctor_of_proxy(halt.url, "--token", "wrong").text_of(
        "token"
    )
    assert doctor_of_proxy(halt.url, "--token", "open-sesame").exit_code == 0


def test_doctor_of_a_public_address_without_a_server_blames_the_address() -> None:
    """For a public address without a server the connection fails, and no check of the model
    follows.
    """
    with socket.socket() as reserved_socket:
        reserved_socket.bind(("127.0.0.1", 0))
        report = doctor_of_proxy(f"http://127.0.0.1:{reserved_socket.getsockname()[1]}")
    assert report.statuses()["connection"] == "fail"
