"""The doctor finds faults on the way to the model and of its server, with remedies."""

from __future__ import annotations

import re
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from halt.app import create_app
from halt.config.environment import load
from halt.config.providers import ProviderSettings
from halt.config.settings import Config
from halt.core.service import GenerationService
from halt.doctor.providers import check_providers, service_of
from halt.doctor.report import Report
from halt.testing import work as fake_work
from halt.testing.fake_openai import FakeOpenAI
from tests.support.doctor_command import ENDLESS, PACED, TWO_SECONDS, doctor
from tests.support.ports import free_port


@pytest.fixture(autouse=True)
def patient_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Long answers run until their Stop and an idle server counts as idle, however slow the machine."""
    monkeypatch.setattr("halt.doctor.stop.LONG", ENDLESS)
    monkeypatch.setattr("halt.doctor.stop.IDLE_WITHIN", 60.0)


@pytest.fixture
def slow_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The complete answer takes two seconds, so that no delay of this machine looks like a buffer."""
    monkeypatch.setattr("halt.doctor.answers.SHORT", TWO_SECONDS)


# --- the model ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("slow_answer")
def test_doctor_of_a_good_upstream_has_only_good_findings(shared_fake: FakeOpenAI) -> None:
    """Name, connection, key, models, streaming, usage, Stop: each is checked and good."""
    report = doctor(OPENAI_BASE_URL=shared_fake.base_url, HALT_MODEL=PACED)
    assert report.exit_code == 0
    assert report.statuses() == {
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
    assert "30 pieces, one by one" in report.findings["streaming"]["text"]
    assert "was closed" in report.findings["stop"]["text"]


def test_doctor_needs_no_data_folder(shared_fake: FakeOpenAI, tmp_path: Path) -> None:
    """The doctor works without a data folder: its findings do not depend on it."""
    (tmp_path / "file").write_text("")
    data = str(tmp_path / "file" / "halt")
    report = doctor(OPENAI_BASE_URL=shared_fake.base_url, HALT_MODEL=PACED, HALT_DATA=data)
    assert report.exit_code == 0
    assert report.findings["answer"]["status"] == "ok"


def test_doctor_warns_of_too_few_open_files(
    shared_fake: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limit below the need of all streams is a warning that names the setting."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 1024))
    report = doctor(OPENAI_BASE_URL=shared_fake.base_url, HALT_MODEL=PACED)
    assert report.statuses()["open files"] == "warn"
    text = "1,024 allowed, 1,504 needed for 500 streams."
    assert report.findings["open files"]["text"] == text
    assert "HALT_MAX_STREAMS" in report.remedy("open files")


def test_doctor_prints_a_line_for_each_finding(shared_fake: FakeOpenAI) -> None:
    """Each finding is a line with status, name, text and, for a fault, the remedy."""
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


def test_doctor_finds_an_address_without_v1(shared_fake: FakeOpenAI) -> None:
    """With an address without /v1 list and answer fail with the request that was sent and a remedy
    with the right ending.
    """
    address = shared_fake.base_url.removesuffix("/v1")
    report = doctor(OPENAI_BASE_URL=address)
    assert report.statuses()["models"] == "fail"
    assert f"The request was GET {address}/models: " in report.findings["models"]["text"]
    assert "up to and with /v1" in report.remedy("models")
    report = doctor(OPENAI_BASE_URL=address, HALT_MODEL="echo")
    assert report.statuses()["answer"] == "fail"
    assert f"The request was POST {address}/chat/completions: " in report.findings["answer"]["text"]


def test_doctor_checks_every_provider_of_a_file(shared_fake: FakeOpenAI, tmp_path: Path) -> None:
    """Findings bear the provider's name, remedies its own settings, and one fault hides no other."""
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
        report = doctor(HALT_CONFIG=str(file))
    statuses = report.statuses()
    assert report.exit_code == 1
    assert statuses["local: connection"] == "fail"
    assert "base_url of [providers.local]" in report.remedy("local: connection")
    assert report.findings["claude: models"]["text"].endswith(f"{PACED} answers")
    assert (statuses["claude: answer"], statuses["claude: stop"]) == ("ok", "ok")
    assert statuses["work: models"] == "ok"
    assert statuses["work: answer"] == "fail"
    assert "key_env of [providers.work]" in report.remedy("work: answer")


def test_doctor_checks_azure_and_anthropic_of_the_environment(shared_fake: FakeOpenAI) -> None:
    """Each is checked by its own address, key and model, whatever HALT_MODEL names of the other."""
    report = doctor(
        OPENAI_API_KEY="",
        AZURE_OPENAI_ENDPOINT=shared_fake.origin,
        AZURE_OPENAI_API_KEY="fake-key-of-tests",
        AZURE_OPENAI_DEPLOYMENT="count?n=20",
        ANTHROPIC_BASE_URL=f"http://127.0.0.1:{free_port()}",
        ANTHROPIC_API_KEY="fake-key-of-tests",
        HALT_MODEL="anthropic/echo",
    )
    assert report.findings["azure: models"]["text"].endswith("count?n=20 answers")
    assert report.statuses()["azure: answer"] == "ok"
    assert "ANTHROPIC_BASE_URL" in report.remedy("anthropic: connection")


def test_doctor_names_a_server_that_refuses_connections() -> None:
    """A server that refuses connections is a finding with the fault and the setting to change."""
    report = doctor(OPENAI_BASE_URL=f"http://127.0.0.1:{free_port()}/v1")
    assert report.exit_code == 1
    assert report.statuses() == {"open files": "ok", "name": "ok", "connection": "fail"}
    assert "refuses connections" in report.findings["connection"]["text"]
    assert "OPENAI_BASE_URL" in report.remedy("connection")


def test_doctor_names_a_host_that_does_not_exist() -> None:
    """An unknown host name is a finding about the name, and later checks are left out."""
    report = doctor(OPENAI_BASE_URL="http://no-such-host.invalid/v1")
    assert report.statuses() == {"open files": "ok", "name": "fail"}
    assert "no-such-host.invalid" in report.findings["name"]["text"]


def test_doctor_gives_a_silent_server_up_after_its_timeout(shared_fake: FakeOpenAI) -> None:
    """After --timeout the answer fails, and the remedy concerns the model's server."""
    report = doctor(
        "--timeout", "2", OPENAI_BASE_URL=shared_fake.base_url, HALT_MODEL="silent_headers"
    )
    assert report.statuses()["answer"] == "fail"
    assert "did not begin to answer in time" in report.findings["answer"]["text"]
    assert report.findings["answer"]["text"].endswith("2 s: --timeout sets this limit.")
    assert "busy" in report.remedy("answer")
    report = doctor(
        "--timeout=9",
        OPENAI_BASE_URL=shared_fake.base_url,
        HALT_MODEL="silent_headers",
        HALT_FIRST_BYTE_TIMEOUT="0.5",
    )
    text = report.findings["answer"]["text"]
    assert text.endswith("0.5 s: HALT_FIRST_BYTE_TIMEOUT sets this limit.")


def test_doctor_suspects_a_firewall_where_connecting_hangs() -> None:
    """A connection attempt without an answer is a finding whose remedy names a firewall."""
    with FakeOpenAI.unaccepting() as url:
        report = doctor(OPENAI_BASE_URL=url, HALT_CONNECT_TIMEOUT="0.2")
    assert report.statuses()["connection"] == "fail"
    assert "firewall" in report.remedy("connection")


def test_doctor_names_an_untrusted_certificate() -> None:
    """An untrusted certificate is a finding about TLS."""
    with FakeOpenAI(tls=True) as fake:
        report = doctor(OPENAI_BASE_URL=fake.base_url)
    assert report.statuses() == {
        "open files": "ok",
        "name": "ok",
        "connection": "ok",
        "TLS": "fail",
    }
    assert "SSL_CERT_FILE" in report.remedy("TLS")


def test_doctor_warns_of_gathered_pieces(shared_fake: FakeOpenAI) -> None:
    """Many pieces in few reads are a warning that suspects a proxy before the model."""
    model = "count?n=60&burst=30&gap_ms=5"
    report = doctor(OPENAI_BASE_URL=shared_fake.base_url, HALT_MODEL=model)
    assert report.statuses()["streaming"] == "warn"
    assert "proxy_buffering off" in report.remedy("streaming")


def test_doctor_warns_of_missing_usage(shared_fake: FakeOpenAI) -> None:
    """A missing usage is a warning that token counts are estimates."""
    report = doctor(OPENAI_BASE_URL=shared_fake.base_url, HALT_MODEL="no_usage")
    assert report.statuses()["usage"] == "warn"


# --- whether the model stops ----------------------------------------------------------------------


@pytest.fixture
def model_server() -> Iterator[FakeOpenAI]:
    """A model's server that can report its running requests."""
    with FakeOpenAI(unknown_model="echo") as fake:
        yield fake


def model_stop(fake: FakeOpenAI) -> tuple[str, str]:
    """Status and text of the finding on whether the model stops."""
    finding = doctor(OPENAI_BASE_URL=fake.base_url, HALT_MODEL=PACED).findings["model stop"]
    return str(finding["status"]), str(finding["text"])


def test_doctor_reports_the_time_until_the_model_stopped(
    model_server: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the server reports its running requests, the finding has the time from the Stop until it
    is idle.

    The request has the key of the answers.
    """
    monkeypatch.setattr("halt.doctor.stop.SLOW_STOP", 60_000.0)
    model_server.work["/slots"] = fake_work.slots
    status, text = model_stop(model_server)
    assert status == "ok"
    assert re.fullmatch(r"the model had stopped \d+ ms after Stop \(GET /slots\)", text)
    records = [record for record in model_server.requests if record.path == "/slots"]
    assert {record.headers["authorization"] for record in records} == {"Bearer fake-key-of-tests"}


def test_doctor_warns_of_a_model_that_stops_late(
    model_server: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that stops late is a warning with the times of the last busy and the first idle
    report.
    """
    monkeypatch.setattr("halt.doctor.running_requests.PAUSES", (0.05,))
    monkeypatch.setattr("halt.doctor.stop.SLOW_STOP", 0.0)
    monkeypatch.setattr("halt.doctor.stop.WATCHED_AFTER_STOP", 60.0)
    busy_reports = iter([1] * 4)  # after the Stop, on a machine of any speed

    def answer(running_count: int) -> tuple[int, str, bytes]:
        is_stopped = any(record.closed.is_set() for record in model_server.requests)
        return fake_work.slots(next(busy_reports, 0) if is_stopped else running_count)

    model_server.work["/slots"] = answer
    status, text = model_stop(model_server)
    assert status == "warn"
    times = re.fullmatch(
        r"the model stopped (\d+\.\d) to (\d+\.\d) s after Stop \(GET /slots\)\.", text
    )
    assert times is not None
    assert 0.1 <= float(times[1]) <= float(times[2])


def test_doctor_warns_of_a_model_that_goes_on(
    model_server: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that goes on after a Stop is a warning with the time for which the server was
    watched.
    """
    monkeypatch.setattr("halt.doctor.stop.WATCHED_AFTER_STOP", 0.3)
    model_server.work["/metrics"] = fake_work.metrics
    model_server.works_on = 60.0
    status, text = model_stop(model_server)
    assert status == "warn"
    assert re.fullmatch(
        r"the model continues: \d\.\d s after Stop the server still has a request "
        r"\(GET /metrics\)\.",
        text,
    )


def test_doctor_claims_nothing_of_a_server_with_other_clients(
    model_server: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With requests of other clients the finding makes no claim, since the doctor cannot
    distinguish its own.
    """
    monkeypatch.setattr("halt.doctor.stop.IDLE_WITHIN", 0.2)
    model_server.work["/slots"] = fake_work.slots
    model_server.others = 2
    status, text = model_stop(model_server)
    assert status == "ok"
    assert text == "not known: the server has other requests at the same time (GET /slots)"


def test_doctor_claims_nothing_if_other_clients_come_after_the_stop(
    model_server: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With more than one request after the Stop, which shows another client, the finding makes no
    claim.
    """
    monkeypatch.setattr("halt.doctor.stop.WATCHED_AFTER_STOP", 0.2)

    def answer(running_count: int) -> tuple[int, str, bytes]:
        is_stopped = any(record.closed.is_set() for record in model_server.requests)
        return fake_work.slots(2 if is_stopped else running_count)

    model_server.work["/slots"] = answer
    status, text = model_stop(model_server)
    assert (status, text.partition(":")[0]) == ("ok", "not known")


def test_doctor_claims_nothing_of_a_server_that_counts_no_answer(
    model_server: FakeOpenAI,
) -> None:
    """For a server that is idle during its answer (another one, or a late count) the finding makes
    no claim.
    """
    model_server.work["/slots"] = lambda _: fake_work.slots(0)
    status, text = model_stop(model_server)
    assert status == "ok"
    assert text == "not known: this server does not report its running requests (docs/stop.md)"


# --- providers that were connected on the page ----------------------------------------------------


def test_connected_providers_are_checked_after_the_others(shared_fake: FakeOpenAI) -> None:
    """Their findings have their names, their remedies the words of the page, their keys no place."""
    key = "fake-key-of-a-form"
    connected = [
        ProviderSettings(name="near", kind="openai", base_url=shared_fake.base_url, key=key),
        ProviderSettings(name="wrong", kind="openai", base_url=shared_fake.origin, key=key),
        ProviderSettings(
            name="closed", kind="anthropic", base_url=f"http://127.0.0.1:{free_port()}", key=key
        ),
    ]
    report = Report(None)
    config = load({"OPENAI_BASE_URL": shared_fake.base_url, "HALT_MODEL": "401"})
    check_providers(report, config, service_of, 20.0, connected)
    findings = {finding.name: finding for finding in report.findings}
    assert "OPENAI_API_KEY" in str(findings["openai: answer"].remedy)
    assert findings["near: answer"].status in {"ok", "warn"}
    assert findings["near: answer"].text.startswith("echo: ")
    assert findings["closed: connection"].status == "fail"
    assert "Address on the page “Models”" in str(findings["closed: connection"].remedy)
    assert "Models on the page “Models”" in str(findings["wrong: models"].remedy)
    assert "OPENAI_BASE_URL" not in findings["wrong: models"].text
    assert key not in repr(report.findings)
    assert list(findings)[-1].startswith("closed: ")


def test_default_of_several_providers_is_that_of_its_own_alone(shared_fake: FakeOpenAI) -> None:
    """HALT_MODEL names a provider's model; another provider uses its own first one."""
    made: list[ProviderSettings] = []

    def make(config: Config, provider: ProviderSettings) -> GenerationService:
        made.append(provider)
        return service_of(config, provider)

    settings = {
        "OPENAI_BASE_URL": shared_fake.base_url,
        "ANTHROPIC_BASE_URL": shared_fake.origin,
        "ANTHROPIC_API_KEY": "fake-key-of-tests",
        "HALT_MODEL": "anthropic/401",
    }
    check_providers(Report(None), load(settings), make, 20.0)
    assert [(provider.name, provider.first_model) for provider in made] == [
        ("openai", ""),
        ("anthropic", "401"),
    ]
