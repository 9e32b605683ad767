"""The trial of a provider before it is saved: its findings, its requests, its ends."""

from __future__ import annotations

import ipaddress
import logging
import socket
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from halt.config.environment import load
from halt.config.providers import ProviderSettings
from halt.config.settings import Config
from halt.core import via
from halt.core.service import GenerationService
from halt.doctor import trial
from halt.doctor.cancellation import Cancellation
from halt.doctor.providers import service_of
from halt.doctor.report import Finding
from halt.doctor.trial import try_provider
from halt.testing import work as fake_work
from halt.testing.fake_openai import FakeOpenAI, Record
from halt.transport import address_policy
from halt.transport.address_policy import LINK_LOCAL
from tests.support.doctor_command import ENDLESS, PACED, TWO_SECONDS
from tests.support.raw_server import Peer, RawServer, answering
from tests.support.simple_model_server import (
    TEXT,
    USAGE,
    ModelRequest,
    Responder,
    list_models,
    refuse_list,
    reply_with,
    serving,
    stream_answer,
)
from tests.support.waiting import WAIT_TIMEOUT, BackgroundCall

KEY = "sk-secret-of-the-form"
CONFIG = load({"HALT_FIRST_BYTE_TIMEOUT": "60", "HALT_GAP_TIMEOUT": "60"})


@pytest.fixture(autouse=True)
def patient_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second answer runs until its Stop, and an idle server counts as idle."""
    monkeypatch.setattr("halt.doctor.stop.LONG", ENDLESS)
    monkeypatch.setattr("halt.doctor.stop.IDLE_WITHIN", 60.0)
    for scheme in ("http", "https", "all", "no"):
        monkeypatch.delenv(f"{scheme}_proxy", raising=False)
        monkeypatch.delenv(f"{scheme}_proxy".upper(), raising=False)


def of_form(base_url: str, **fields: Any) -> ProviderSettings:
    """The settings that the page's form gives."""
    given: dict[str, Any] = {"name": "typed", "kind": "openai", "key": KEY, "connect_timeout": 20.0}
    return ProviderSettings(base_url=base_url, **given | fields)


class Tried:
    """A trial's findings and its result."""

    def __init__(
        self,
        settings: ProviderSettings,
        model: str = "",
        config: Config = CONFIG,
        cancellation: Cancellation | None = None,
        make: Callable[[Config, ProviderSettings], GenerationService] = service_of,
    ) -> None:
        self.findings: list[Finding] = []
        self.cancellation = cancellation or Cancellation()
        self._arguments = settings, config, make, self.findings.append, self.cancellation, model

    def run_alone(self) -> bool:
        return try_provider(*self._arguments)

    def run(self) -> Tried:
        self.is_well = self.run_alone()
        assert KEY not in repr(self.findings)
        assert "HALT_F" not in repr(self.findings)
        assert "HALT_MODEL" not in repr(self.findings)
        assert "OPENAI" not in repr(self.findings)
        assert all(finding.remedy for finding in self.findings if finding.status != "ok")
        assert self.is_well == all(finding.status != "fail" for finding in self.findings)
        return self

    def statuses(self) -> dict[str, str]:
        return {finding.name: finding.status for finding in self.findings}

    def __getitem__(self, name: str) -> Finding:
        (finding,) = [finding for finding in self.findings if finding.name == name]
        return finding


def tried(base_url: str, model: str = "", config: Config = CONFIG, **fields: Any) -> Tried:
    return Tried(of_form(base_url, **fields), model, config).run()


def tried_server(
    lists: Responder = list_models, answers: Responder = stream_answer, model: str = ""
) -> Tried:
    """The trial of a server with these responders."""
    with serving(lists, answers) as url:
        return tried(url, model)


def is_answer(record: Record) -> bool:
    """Whether this request is one for an answer."""
    return record.method == "POST"


# --- what it finds --------------------------------------------------------------------------------


def test_good_provider_has_a_good_finding_of_each_kind(
    fake: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Address, key, models, answer and stop have a line each, in this order."""
    monkeypatch.setattr("halt.doctor.answers.SHORT", TWO_SECONDS)  # delays are short beside it
    findings = tried(fake.base_url, PACED, key=KEY).findings
    assert [finding.name for finding in findings] == ["address", "key", "models", "answer", "stop"]
    assert [finding.status for finding in findings] == ["ok", "ok", "warn", "ok", "ok"]
    address, key, models, answer, stop = findings
    assert f"127.0.0.1:{fake.port} accepts connections (" in address.text
    assert key.text == "accepted for the list of models"
    assert "is not among" in models.text  # a scenario with arguments
    assert answer.text.startswith(f"{PACED}: first token after ")
    assert "tokens/s; 30 pieces, one by one" in answer.text
    assert stop.text.startswith("the connection to the model was closed after ")
    assert "not known" not in stop.text


def test_trial_requests_two_answers_and_stops_both(
    fake: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer that would never end is stopped after PIECES pieces, the second at its first."""
    monkeypatch.setattr("halt.doctor.answers.SHORT", "/fake count?rate=500&n=1000000")
    assert tried(fake.base_url, "echo").is_well
    answers = [record for record in fake.requests if is_answer(record)]
    assert len(answers) == 2
    for record in answers:
        assert record.closed.wait(WAIT_TIMEOUT)


@pytest.mark.parametrize(
    ("fields", "model"),
    [({}, "good"), ({"models": ("named", "other")}, "named"), ({"default_model": "set"}, "set")],
)
def test_model_that_answers(fields: dict[str, Any], model: str) -> None:
    """It is the given one, else the provider's first, else the first of the list that chats."""
    lists = reply_with({"data": [{"id": "text-embedding-3-small"}, {"id": "good"}]})
    with serving(lists) as url:
        assert tried(url, **fields)["answer"].text.startswith(f"{model}: ")
        assert tried(url, "given", **fields)["answer"].text.startswith("given: ")


def test_refused_key_has_the_servers_words_without_the_key() -> None:
    """The finding quotes the server, hides the key that it quotes, and names the field."""
    refusal = reply_with({"error": {"message": f"Incorrect API key provided: {KEY}"}}, 401)
    trial_of_key = tried_server(lists=refusal)
    assert trial_of_key.statuses() == {"address": "ok", "key": "fail"}
    assert "It said: Incorrect API key provided: [key]" in trial_of_key["key"].text
    assert trial_of_key["key"].remedy == "Set Key to a key of this server."


def test_key_that_only_answers_need(fake: FakeOpenAI) -> None:
    """Where the list is public a refused key fails the answer, and nothing claims to accept it."""
    of_answer = tried(fake.base_url, "401")
    assert of_answer["key"].text == "accepted for the list of models"
    assert of_answer["answer"].status == "fail"
    assert of_answer["answer"].remedy == "Set Key to a key of this server."


def test_secret_of_a_header_is_in_no_finding() -> None:
    """The values of headers are hidden as the key is."""
    word = "value-of-a-header/1"
    refusal = reply_with(
        {"error": {"message": f"No such gateway: {word} value-of-a-header%2F1"}}, 403
    )
    with serving(refusal) as url:
        findings = tried(url, headers={"X-Gateway": word}).findings
    assert "No such gateway: [key] [key]" in findings[-1].text


def test_server_without_a_list_needs_a_model() -> None:
    """Without a list and a model the field to fill is named, once; with a model it is tried."""
    without = tried_server(lists=refuse_list)
    assert without["models"].status == "fail"
    assert without["models"].text.startswith("the server has no list of models.")
    assert without["models"].remedy == "Set Models to a model that the server has."
    with_model = tried_server(lists=refuse_list, model="good")
    assert with_model.statuses()["models"] == "warn"
    assert with_model.statuses()["answer"] != "fail"
    assert with_model["key"].text == "accepted"


def test_empty_list_is_a_failure_without_a_model() -> None:
    """An empty list is named, with what to do."""
    empty = tried_server(lists=reply_with({"data": []}))
    assert empty["models"].text == "the server has no models."
    assert empty["models"].remedy == "Load a model on the server, or set Models to one."
    assert tried_server(lists=reply_with({"data": []}), model="good")["models"].status == "warn"


def test_answer_in_one_piece_is_a_warning_and_is_requested_once() -> None:
    """A server that does not stream would write the second answer to its end: it is not asked."""
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": TEXT},
        "finish_reason": "stop",
    }
    completion = {"object": "chat.completion", "choices": [choice], "usage": USAGE}
    asked: list[str] = []

    def answer(request: Any) -> None:
        asked.append(request.path)
        request.reply(completion)

    whole = tried_server(answers=answer)
    assert whole["answer"].status == "warn"
    assert "the server does not stream" in whole["answer"].text
    assert "first token after" in whole["answer"].text
    assert whole["stop"].status == "warn"
    assert whole["stop"].text.startswith("not checked")
    assert len(asked) == 1


def test_buffered_answer_is_a_warning(fake: FakeOpenAI) -> None:
    """Pieces that come in batches show a proxy that buffers."""
    buffered = tried(fake.base_url, "count?n=60&burst=30&gap_ms=5")
    assert buffered["answer"].status == "warn"
    assert "a proxy before the model buffers them" in buffered["answer"].text
    assert "proxy_buffering off" in str(buffered["answer"].remedy)


def test_model_that_never_answers_fails_after_the_longest_silence(fake: FakeOpenAI) -> None:
    """The finding says how long it waited, and names no setting of the server."""
    config = replace(CONFIG, first_byte_timeout=1.5)
    silent = tried(fake.base_url, "silent_headers", config=config)
    assert silent.statuses()["answer"] == "fail"
    assert silent["answer"].text.endswith("The provider sent nothing for 1.5 s.")
    assert str(silent["answer"].remedy).endswith("is not busy, then try again.")


def test_list_that_never_comes_fails_after_the_longest_silence() -> None:
    """A server that accepts and says nothing fails at its list of models."""
    with RawServer(answering()) as server:
        silent = tried(server.url, config=replace(CONFIG, first_byte_timeout=1.5))
    assert silent.statuses() == {"address": "ok", "models": "fail"}
    assert silent["models"].text.startswith("no response")


def test_no_silence_is_longer_than_the_trials_limit(
    fake: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A patient server's own limits do not make a trial as patient."""
    monkeypatch.setattr(trial, "SILENCE_MAX", 1.5)
    assert "for 1.5 s." in tried(fake.base_url, "silent_headers")["answer"].text


def test_model_that_goes_on_after_stop_is_a_warning(
    fake: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the server reports its running requests, the stop's line says whether it stopped."""
    monkeypatch.setattr("halt.doctor.stop.SLOW_STOP", 60_000.0)
    fake.work["/slots"] = fake_work.slots
    stop = tried(fake.base_url, PACED)["stop"]
    assert stop.status == "ok"
    assert "; the model had stopped " in stop.text
    monkeypatch.setattr("halt.doctor.stop.WATCHED_AFTER_STOP", 0.3)
    fake.works_on = 60.0
    fake.clear()
    stop = tried(fake.base_url, PACED)["stop"]
    assert stop.status == "warn"
    assert "the model continues" in stop.text


def test_untrusted_certificate_fails_the_address() -> None:
    """The address has the certificate's fault in its one line."""
    with FakeOpenAI(tls=True) as server:
        untrusted = tried(server.base_url)
    assert untrusted.statuses() == {"address": "fail"}
    assert untrusted["address"].text.startswith("no trusted TLS connection: ")
    assert "SSL_CERT_FILE" in str(untrusted["address"].remedy)


def test_server_without_tls_and_one_that_needs_it(fake: FakeOpenAI) -> None:
    """With the other scheme than the server's the remedy names the right one."""
    with FakeOpenAI(tls=True) as server:
        dropped = tried(server.base_url.replace("https:", "http:"))
    assert "begin Address with https://" in str(dropped["models"].remedy)
    with RawServer(answering(b"HTTP/1.1 400 Bad Request\r\n\r\n")) as plain:
        wrong = tried(plain.url.replace("http:", "https:"), connect_timeout=0.3)
    assert wrong["address"].text.startswith("no trusted TLS connection: the server did not begin")
    assert "begins with http://" in str(wrong["address"].remedy)

    def answer(peer: Peer) -> None:
        peer.sock.recv(1)
        peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        peer.wait_client_left()

    with RawServer(answer) as plain:
        wrong = tried(plain.url.replace("http:", "https:"))
    assert wrong["address"].text == "no trusted TLS connection: the server does not speak TLS."


def test_trusted_certificate_is_in_the_line_of_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """The address says which TLS it has and how long the certificate is valid."""
    with FakeOpenAI(tls=True) as server:
        monkeypatch.setenv("SSL_CERT_FILE", server.ca_pem_path)
        assert "; TLSv1.3, the certificate is valid for " in tried(server.base_url)["address"].text


def test_address_without_v1_names_the_request_and_the_field(fake: FakeOpenAI) -> None:
    """A wrong path fails the list with the address that was requested."""
    wrong = tried(fake.base_url.removesuffix("/v1"))
    assert wrong.statuses() == {"address": "ok", "models": "fail"}
    assert f"GET {fake.origin}/models" in wrong["models"].text
    assert str(wrong["models"].remedy).startswith("Correct Address: it must be the address of the")


def test_redirect_to_another_server_is_named() -> None:
    """The line says where the address redirects to, with and without a model to try."""

    def redirect(request: ModelRequest) -> None:
        request.send_response(307)
        request.send_header("Location", "https://other.example/v1/models")
        request.send_header("Content-Length", "0")
        request.end_headers()

    for model in ("", "good"):
        models = tried_server(lists=redirect, model=model)["models"]
        assert models.status == ("warn" if model else "fail")
        assert "Halt does not send the request and the key there." in models.text
        assert "it redirects to https://other.example/v1/models" in models.text


@pytest.mark.parametrize(
    "address", ["", "model.example", "ftp://model.example", "http://", "http://a:99999/v1"]
)
def test_text_that_is_no_address_fails(address: str) -> None:
    """What is no address has one finding that shows the form of one."""
    wrong = tried(address)
    assert wrong.statuses() == {"address": "fail"}
    assert "http(s)://HOST" in str(wrong["address"].remedy)


def test_address_with_a_requests_path_is_a_warning(fake: FakeOpenAI) -> None:
    """The path of a request at its end is named; everything else is checked all the same."""
    copied = tried(f"{fake.base_url}/chat/completions", PACED)
    assert copied["address"].status == "warn"
    assert "accepts connections" in copied["address"].text
    assert copied["address"].remedy == f"Remove it: set Address to {fake.base_url}."
    assert copied["answer"].status != "fail"


def test_address_of_this_halt_is_named_as_a_loop(fake: FakeOpenAI) -> None:
    """Requests have the mark of this Halt, which refuses what comes from itself."""
    make = partial(service_of, instance_id="0123456789abcdef")
    assert Tried(of_form(fake.base_url), PACED, make=make).run().is_well
    marks = {record.headers[via.HEADER.lower()] for record in fake.requests if is_answer(record)}
    assert marks == {"0123456789abcdef"}
    refusal = {"error": {"message": "This Halt is its own server.", "code": "loop_detected"}}
    own = tried_server(lists=reply_with(refusal, 508))
    assert own["models"].status == "fail"
    assert "leads to this Halt" in own["models"].text
    assert own["models"].remedy == "Set Address to that of a model's server."


def test_name_that_no_server_knows_fails_the_address() -> None:
    """An unknown name is the address's finding."""
    assert "no-such-host.invalid" in tried("http://no-such-host.invalid/v1")["address"].text


def test_anthropic_and_azure(fake: FakeOpenAI) -> None:
    """Both kinds have the same lines; Azure needs the name of a deployment."""
    claude = tried(fake.origin, "count?n=20", kind="anthropic")
    assert set(claude.statuses()) == {"address", "key", "models", "answer", "stop"}
    assert claude.is_well
    fields: dict[str, Any] = {"kind": "azure", "api_version": "2025-01-01"}
    azure = tried(fake.origin, models=("count?n=20",), **fields)
    assert azure["models"].text.endswith("count?n=20 answers")
    assert azure.is_well
    unnamed = tried(fake.origin, **fields)
    assert unnamed["models"].text == "no deployment is named."
    assert unnamed["models"].remedy == "Set Models to the name of a deployment."


# --- addresses ------------------------------------------------------------------------------------


def test_link_local_address_is_refused_and_not_connected_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The line has the words of the error of requests; 127.0.0.2 stands for a link-local address."""
    refused = (ipaddress.ip_network("127.0.0.2"), LINK_LOCAL)
    monkeypatch.setattr(
        address_policy, "REFUSED_NETWORKS", (*address_policy.REFUSED_NETWORKS, refused)
    )
    with RawServer(answering(), host="127.0.0.2") as server:
        linked = tried(server.url)
        assert server.accepted == 0
        assert linked.statuses() == {"address": "fail"}
        assert "is a link-local address, to which Halt does not connect." in linked["address"].text
        config = replace(CONFIG, first_byte_timeout=1.5)
        allowed = tried(server.url, config=config, allow_link_local=True)
        assert allowed["address"].status == "ok"


def test_checked_address_is_the_one_that_is_connected_to(
    fake: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One look-up gives the addresses; the refused ones are left out, the others connected to."""
    real = socket.getaddrinfo
    answers = iter([["169.254.169.254", "127.0.0.1"], ["169.254.169.254"]])

    def look_up(host: str, port: int, *options: Any) -> Any:
        if host != "model.example":
            return real(host, port, *options)
        return [item for address in next(answers) for item in real(address, port, *options)]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    moved = tried(f"http://model.example:{fake.port}/v1")
    assert moved["address"].status == "ok"
    assert "resolves to the link-local address 169.254.169.254" in moved["models"].text


def test_proxy_is_named_and_so_is_what_halt_cannot_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind a proxy the line says that Halt cannot check the address; a literal one is checked."""
    with serving() as url:
        monkeypatch.setenv("HTTP_PROXY", url.removesuffix("/v1"))
        address = tried("http://model.invalid/v1")["address"]
        assert (address.status, "Halt cannot check which address the proxy" in address.text) == (
            "ok",
            True,
        )
        refused = tried("http://169.254.169.254/v1")
    assert refused.statuses() == {"address": "fail"}


# --- its ends -------------------------------------------------------------------------------------


class Background:
    """A trial in a thread of its own."""

    def __init__(self, settings: ProviderSettings, model: str = "") -> None:
        self.tried = Tried(settings, model)
        self.call = BackgroundCall(self.tried.run_alone)

    def cancel(self) -> None:
        """Cancel it; it ends at once, says so by its result alone."""
        before = list(self.tried.findings)
        self.tried.cancellation.cancel()
        assert self.call.end() is None
        assert self.call.result is False
        assert self.tried.findings == before


def test_cancel_during_the_look_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name server that does not answer keeps no trial."""
    looked_up, release = threading.Event(), threading.Event()

    def look_up(*_: Any) -> Any:
        looked_up.set()
        release.wait(WAIT_TIMEOUT)
        raise socket.gaierror(socket.EAI_NONAME, "no such name")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    background = Background(of_form("http://model.example/v1"))
    assert looked_up.wait(WAIT_TIMEOUT)
    background.cancel()
    assert background.tried.findings == []
    release.set()


def test_cancel_while_it_connects(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that drops packets keeps no trial."""
    dialled = threading.Event()
    real = socket.socket.connect

    def connect(sock: socket.socket, target: Any) -> None:
        dialled.set()
        real(sock, target)

    with FakeOpenAI.unaccepting() as url:
        monkeypatch.setattr(socket.socket, "connect", connect)
        background = Background(of_form(url))
        assert dialled.wait(WAIT_TIMEOUT)
        background.cancel()
    assert background.tried.findings == []


def test_cancel_during_the_handshake() -> None:
    """A server that accepts and does not speak TLS keeps no trial, and sees it leave."""
    greeted = threading.Event()

    def read_greeting(peer: Peer) -> None:
        peer.sock.recv(1)
        greeted.set()
        peer.wait_client_left()

    with RawServer(read_greeting) as server:
        background = Background(of_form(server.url.replace("http:", "https:")))
        assert greeted.wait(WAIT_TIMEOUT)
        background.cancel()
        server.wait_over(1)
    assert background.tried.findings == []


def test_cancel_while_the_list_is_awaited() -> None:
    """The connection of the list is closed at once."""
    requested = threading.Event()

    def read_request(peer: Peer) -> None:
        if peer.request():  # the check of the connection sends none
            requested.set()
        peer.wait_client_left()

    with RawServer(read_request) as server:
        background = Background(of_form(server.url))
        assert requested.wait(WAIT_TIMEOUT)
        background.cancel()
        server.wait_over(2)
    assert background.tried.statuses() == {"address": "ok"}


@pytest.mark.parametrize("model", ["silent_headers", "silent_first_token", "stall?n=3"])
def test_cancel_during_the_first_answer(fake: FakeOpenAI, model: str) -> None:
    """Before its head, before its text and within it: the connection is closed at once."""
    background = Background(of_form(fake.base_url), model)
    record = fake.wait_request(is_answer)
    background.cancel()
    assert record.closed.wait(WAIT_TIMEOUT)
    assert "answer" not in background.tried.statuses()


def test_cancel_during_the_second_answer(fake: FakeOpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer that shall be stopped may be silent, too."""
    monkeypatch.setattr("halt.doctor.stop.LONG", "/fake silent_first_token")
    background = Background(of_form(fake.base_url), PACED)
    record = fake.wait_request(is_answer, nth=1)
    background.cancel()
    assert record.closed.wait(WAIT_TIMEOUT)
    assert "stop" not in background.tried.statuses()


def test_cancel_while_it_waits_for_an_idle_server(
    fake: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that is busy with others keeps no trial."""
    monkeypatch.setattr("halt.doctor.running_requests.PAUSES", (60.0,))
    paused, real = threading.Event(), Cancellation.pause

    def pause(cancellation: Cancellation, seconds: float) -> None:
        paused.set()
        real(cancellation, seconds)

    monkeypatch.setattr(Cancellation, "pause", pause)
    fake.work["/slots"], fake.others = fake_work.slots, 2
    background = Background(of_form(fake.base_url), PACED)
    assert paused.wait(WAIT_TIMEOUT)
    background.cancel()
    assert len([record for record in fake.requests if is_answer(record)]) == 1


def test_cancelled_before_it_begins(fake: FakeOpenAI) -> None:
    """A cancellation that comes first wins: nothing is requested."""
    cancellation = Cancellation()
    cancellation.cancel()
    assert Tried(of_form(fake.base_url), cancellation=cancellation).run_alone() is False
    assert fake.requests == []
    assert fake.open_connections == 0


def test_trial_that_takes_too_long_is_ended_with_a_finding(
    fake: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the end of its time it closes its connection, and says what it did not check."""
    monkeypatch.setattr(trial, "TRIAL_SECONDS", 3.0)
    late = tried(fake.base_url, "silent_headers")
    assert late.findings[-1].name == "time"
    assert "the rest was not checked" in late["time"].text
    assert fake.wait_request(is_answer).closed.wait(WAIT_TIMEOUT)


def test_unexpected_exception_is_a_finding_and_in_the_log_without_the_key(
    fake: FakeOpenAI, caplog: pytest.LogCaptureFixture
) -> None:
    """The page has a sentence; the log has the traceback, in which the key is hidden."""

    def make(_: Config, settings: ProviderSettings) -> GenerationService:
        raise ValueError(f"cannot use {settings.key}")

    with caplog.at_level(logging.ERROR):
        surprised = Tried(of_form(fake.base_url), make=make).run()
    assert surprised["trial"].text == "Halt had an internal error."
    assert "cannot use [key]" in caplog.text
    assert "Traceback" in caplog.text
    assert KEY not in caplog.text
