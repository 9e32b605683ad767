"""Looks at the way to the model, one finding after the other, each with its remedy.

Answers are asked for through the same core as everybody's, so what is found is what users get.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Literal
from urllib.parse import urlsplit

import httpx2
import msgspec

from halt.cli.doctor.server_load import ServerLoad
from halt.cli.screen import one_line
from halt.cli.source import ANSWER_WITHIN
from halt.clock import now
from halt.config import open_files
from halt.config.providers import ProviderSettings, setup
from halt.config.settings import Config
from halt.core.connection import limited
from halt.core.events import (
    Cancelled,
    Content,
    Done,
    Event,
    Failed,
    Reasoning,
    Terminal,
    ToolCallDelta,
    is_terminal,
)
from halt.core.metrics import Metrics
from halt.core.request import ChatRequest, Message, ToolSpec
from halt.core.run import Run
from halt.core.service import Generations
from halt.errors import HaltError
from halt.providers.base import WHOLE
from halt.providers.exchange import public_address
from halt.providers.openai import ENDPOINT
from halt.transport.dns import Names
from halt.transport.pool import proxy_for

SHORT, LONG = "Count from 1 to 20.", "Count from 1 to 500, one number a line."
#: Fewer pieces than this say nothing about how they were sent on.
PIECES_MIN = 8
#: Pieces that came together, on average, from which on something gathers them.
GATHERED = 5
FEW_DAYS = 14  # days until a certificate ends that call for a warning
SLOW_STOP = 1000.0  # milliseconds
SETTLES_WITHIN = 1.0  # seconds for a server to be idle after an answer that was read to its end
WATCHED_AFTER_STOP = 5.0  # seconds that the model's server is looked at after a Stop
TEXT_MAX = 400  # characters of a finding

Status = Literal["ok", "warn", "fail"]

#: What to do about each code of an UpstreamError, beside what its sentence says and what the server
#: said; in braces the names of settings.
REMEDIES = {
    "upstream_refused": "Start the model's server, or correct {address}.",
    "upstream_dns": "Correct the name in {address}, or this machine's resolver.",
    "upstream_tls": "Give the server a certificate for this name; for an authority of your own "
    "set SSL_CERT_FILE.",
    "upstream_no_tls": "Correct {address}: a server without TLS has one with http://.",
    "upstream_tls_timeout": "Correct {address}: a server without TLS has one with http://.",
    "upstream_connect_timeout": "Look for a firewall on the way; correct {address}.",
    "upstream_unreachable": "Correct {address}; look for a firewall or proxy on the way.",
    "upstream_dropped": "Look at the server's own log, and at proxies on the way.",
    "upstream_incomplete": "Look at the server's own log, and at proxies on the way.",
    "upstream_server_error": "Look at the server's own log.",
    "bad_request": "Change what the server names in its answer, or set {model} to another model.",
    "context_too_long": "Load the model with a longer context.",
    "unauthorized": "Set {key} to a key of this server.",
    "forbidden": "Use a key that may do this, or set {model} to another model.",
    "region_not_supported": "No other key helps. Use a provider that serves this country: set "
    "{address}, {key} and {model}.",
    "content_filter": "Look at the rules of the server, or set {model} to another model.",
    "quota_exceeded": "Add credit to the account of this key, or raise its limit.",
    "model_not_found": "Set {model} to a model of this server.",
    "endpoint_not_found": "Correct {address}: it must lead to the API, up to and with /v1 where "
    "the API's paths begin so.",
    "model_loading": "Wait until the model is loaded, then ask again; or allow more with "
    "--timeout.",
    "rate_limited": "Wait, or raise the limits of your account.",
    "upstream_invalid": "Correct {address}: it must lead to the API, up to and with /v1 where the "
    "API's paths begin so.",
    "upstream_web_page": "Correct {address}: it must lead to the API, up to and with /v1 where the "
    "API's paths begin so. Where the network wants a sign-in, sign in.",
    "first_byte_timeout": "Look at the model's server: is the model loaded, is it busy? "
    "Or allow more with --timeout.",
    "stalled": "Look at the model's server and at proxies on the way.",
    "no_model": "Set OPENAI_API_KEY or OPENAI_BASE_URL.",
}
#: The same for an answer, where the list of models has come from the address.
LISTED_REMEDIES = {
    "endpoint_not_found": "The list of models is at {address}, chat completions are not: look in "
    "the server's documentation for the address of its OpenAI-compatible API.",
    "upstream_invalid": "{address} leads to the server: look at its own log, at its version, and "
    "at gateways on the way.",
}


#: What the settings of a provider are called in the environment, and in a file.
ENVIRONMENT: Mapping[str, Mapping[str, str]] = {
    "openai": {"address": "OPENAI_BASE_URL", "key": "OPENAI_API_KEY", "model": "HALT_MODEL"},
    "azure": {
        "address": "AZURE_OPENAI_ENDPOINT",
        "key": "AZURE_OPENAI_API_KEY",
        "model": "AZURE_OPENAI_DEPLOYMENT",
    },
    "anthropic": {
        "address": "ANTHROPIC_BASE_URL",
        "key": "ANTHROPIC_API_KEY",
        "model": "HALT_MODEL",
    },
}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at, in plain words; `remedy` where it is not well."""

    name: str
    status: Status
    text: str
    remedy: str = ""


class Report:
    """Findings as they come. `say` is given a line for each, None for silence."""

    def __init__(self, say: Callable[[str], object] | None) -> None:
        self.findings: list[Finding] = []
        self.part = ""  # put before the names of findings, where several things are looked at
        self.names: Mapping[str, str] = ENVIRONMENT["openai"]  # of the settings, for remedies
        self.is_listed = False  # the address has brought a list of models
        self._say = say

    @property
    def is_well(self) -> bool:
        """Nothing has failed."""
        return all(each.status != "fail" for each in self.findings)

    def ok(self, name: str, text: str) -> None:
        """All is well with this."""
        self._add(name, "ok", text)

    def warn(self, name: str, text: str, remedy: str) -> None:
        """It works, not as well as it could."""
        self._add(name, "warn", text, remedy)

    def fail(self, name: str, text: str, remedy: str) -> None:
        """It does not work."""
        self._add(name, "fail", text, remedy)

    def fault(self, name: str, error: HaltError) -> None:
        """It has failed with an error of ours."""
        self.fail(name, error.message, self.remedy(error.code))

    def remedy(self, code: str) -> str:
        """What to do about an error of this code, in the names of the settings at fault."""
        usual = REMEDIES.get(code, "Look at the server's own log.")
        chosen = LISTED_REMEDIES.get(code, usual) if self.is_listed else usual
        return chosen.format_map(self.names)

    def as_json(self) -> str:
        """All of it for a machine."""
        findings = [
            {"name": f.name, "status": f.status, "text": f.text, "remedy": f.remedy or None}
            for f in self.findings
        ]
        return msgspec.json.encode({"ok": self.is_well, "findings": findings}).decode()

    def _add(self, name: str, status: Status, text: str, remedy: str = "") -> None:
        finding = Finding(self.part + name, status, one_line(text, TEXT_MAX), remedy)
        self.findings.append(finding)
        if self._say is not None:
            end = "" if not finding.remedy or finding.text.endswith((".", "!", "?", "…")) else "."
            cure = f"{end} {finding.remedy}" if finding.remedy else ""
            self._say(f"{finding.status:<4}  {finding.name}: {finding.text}{cure}")


Make = Callable[[Config, str], Generations]


def _names(config: Config, provider: ProviderSettings) -> Mapping[str, str]:
    if not config.config_file:
        return ENVIRONMENT[provider.kind]
    table = f"[providers.{provider.name}]"
    return {
        "address": f"{'endpoint' if provider.kind == 'azure' else 'base_url'} of {table}",
        "key": f"the variable that key_env of {table} names",
        "model": f"default, or models of {table},",
    }


def examine(report: Report, config: Config, make: Make, timeout: float) -> None:
    """Look at each provider of these settings; `timeout` is for silence, in seconds.

    `make` makes generations for settings, of the provider that it is given by name.
    """
    config = replace(
        config,
        retries=0,
        first_byte_timeout=min(timeout, config.first_byte_timeout),
        gap_timeout=min(timeout, config.gap_timeout),
    )
    _open_files(report, config.max_streams)
    providers = setup(config).providers
    for provider in providers:
        report.part = f"{provider.name}: " if len(providers) > 1 else ""
        report.names = _names(config, provider)
        report.is_listed = False
        _examine(report, config, provider, make)
    report.part = ""


def _examine(report: Report, config: Config, provider: ProviderSettings, make: Make) -> None:
    if not _reach(report, provider):
        return
    generations = make(config, provider.name)
    try:
        if not _models(report, provider, generations):
            return
        if not _answer(report, generations):
            return
        load = ServerLoad(provider, generations.upstream.known_model)
        try:
            _stop(report, generations, load)
        finally:
            load.close()
        _extras(report, generations)
    finally:
        generations.close()


def _open_files(report: Report, streams: int) -> None:
    """Whether the system lets the server have as many as its streams take."""
    allowed, needed = open_files.allowed(), open_files.needed(streams)
    text = f"{allowed:,} allowed, {needed:,} needed for {streams} streams"
    if allowed >= needed:
        report.ok("open files", text)
    else:
        remedy = "Raise the limit (ulimit -Hn; LimitNOFILE= of systemd), or lower HALT_MAX_STREAMS."
        report.warn("open files", f"{text}.", remedy)


# --- the way --------------------------------------------------------------------------------------


def milliseconds(spent: float) -> str:
    """Seconds as milliseconds, in words."""
    return f"{spent * 1000:.0f} ms"


def _reach(report: Report, provider: ProviderSettings) -> bool:
    """The address itself, name, connection, TLS."""
    cut = ENDPOINT.sub("", provider.base_url)
    if provider.kind == "openai" and cut != provider.base_url:
        report.warn(
            "address",
            f"{provider.base_url.removeprefix(cut)} is the path of a request, which Halt puts "
            "behind the address by itself.",
            f"Cut it off: set {report.names['address']} to {public_address(cut)}.",
        )
    url = urlsplit(provider.base_url)
    host = url.hostname or ""
    if goes_through_proxy(report, provider.base_url):
        return True
    port = url.port or (443 if url.scheme == "https" else 80)
    sock = reach(report, host, port, provider.connect_timeout, report.names["address"])
    if sock is None:
        return False
    with sock:
        return url.scheme != "https" or trusts(report, sock, host)


def goes_through_proxy(report: Report, address: str) -> bool:
    """Say through which proxy requests to this address go; whether there is one."""
    proxy = proxy_for(address)
    if proxy is None:
        return False
    host = urlsplit(address).hostname
    text = f"requests to {host} go through {proxy} (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY)"
    report.ok("proxy", f"{text}; what NO_PROXY names does not")
    return True


def reach(
    report: Report, host: str, port: int, connect_timeout: float, setting: str
) -> socket.socket | None:
    """Look up a name and connect; the connection, None where there is none."""
    began = now()
    try:
        found = Names().addresses(host, port, now() + ANSWER_WITHIN)[0][4][0]
    except OSError as exc:
        report.fail("name", f"{host}: {exc.strerror or exc}.", f"Correct the name in {setting}.")
        return None
    spent = milliseconds(now() - began)
    report.ok("name", f"{host} is {found} ({spent})")
    began = now()
    try:
        sock = socket.create_connection((host, port), timeout=connect_timeout)
    except ConnectionRefusedError:
        report.fail(
            "connection",
            f"{host}:{port} refuses connections.",
            f"Start the server that should listen there, or correct {setting}.",
        )
    except TimeoutError:
        report.fail(
            "connection",
            f"{host}:{port} does not accept a connection within {connect_timeout:g} s.",
            f"Look for a firewall on the way, or correct {setting}.",
        )
    except OSError as exc:
        report.fail("connection", f"{host}:{port}: {exc}.", f"Correct {setting}.")
    else:
        report.ok("connection", f"{host}:{port} accepts ({milliseconds(now() - began)})")
        return sock
    return None


def trusts(report: Report, sock: socket.socket, host: str) -> bool:
    """Shake hands and look at the certificate."""
    began = now()
    try:
        with httpx2.create_ssl_context().wrap_socket(sock, server_hostname=host) as secure:
            certificate = secure.getpeercert() or {}
            version = secure.version()
    except (ssl.SSLError, OSError) as exc:
        reason = getattr(exc, "verify_message", "") or exc
        distrusted = isinstance(exc, ssl.SSLCertVerificationError)
        remedy = report.remedy("upstream_tls" if distrusted else "upstream_no_tls")
        report.fail("TLS", f"no trusted connection: {reason}.", remedy)
        return False
    ends = datetime.fromtimestamp(ssl.cert_time_to_seconds(str(certificate["notAfter"])), UTC)
    days = (ends - datetime.now(UTC)).days
    if days < FEW_DAYS:
        report.warn("TLS", f"the certificate ends in {days} days.", "Renew it.")
    else:
        spent = milliseconds(now() - began)
        report.ok("TLS", f"{version}, the certificate holds {days} days ({spent})")
    return True


# --- the model ------------------------------------------------------------------------------------


def _models(report: Report, provider: ProviderSettings, generations: Generations) -> bool:
    upstream = generations.upstream
    model = upstream.known_model
    began = now()
    try:
        with limited(min(ANSWER_WITHIN, generations.config.first_byte_timeout)) as line:
            if provider.models:  # named in the settings, and perhaps listed nowhere else
                upstream.check(line)
            names = upstream.models(line)
    except HaltError as error:
        if line.interrupted:
            remedy = report.remedy("first_byte_timeout")
            report.fail("models", "no answer to the list of models.", remedy)
            return False
        return _no_list(report, provider, model, error)
    report.is_listed = True
    report.ok("key", "none is needed" if provider.key == "none" else "accepted")
    spent = milliseconds(now() - began)
    if not names and model:
        remedy = f"Nothing need be done, as long as {report.names['model']} is right."
        report.warn("models", "the server's list is empty.", remedy)
    elif not names:
        report.fail("models", "the server offers none.", "Load a model there.")
        return False
    elif model and model not in names:
        report.warn(
            "models",
            f"{model} is not among the {len(names)} of the list.",
            f"Set {report.names['model']} to one of them, for example {names[0]}.",
        )
    else:
        report.ok("models", f"{len(names)} ({spent}){f'; {model} answers' if model else ''}")
    return True


#: Faults of a list that stand for the whole server: an answer is not asked for.
_FINAL = frozenset({"unauthorized", "no_model"})
_UNREACHED = (
    "upstream_refused",
    "upstream_dns",
    "upstream_tls",
    "upstream_no_tls",
    "upstream_connect",
    "upstream_unreachable",
)


def _no_list(report: Report, provider: ProviderSettings, model: str, error: HaltError) -> bool:
    """Say why there is no list of models; whether an answer can be asked for all the same."""
    name = "key" if error.code in {"unauthorized", "forbidden"} else "models"
    setting = report.names["model"]
    if model and error.code not in _FINAL and not error.code.startswith(_UNREACHED):
        text = error.message
        if error.code == "endpoint_not_found":
            text = "the server has no list of models."
        remedy = f"Nothing need be done, as long as {setting} is right: {model} is asked."
        report.warn(name, text, remedy)
        return True
    if error.code == "endpoint_not_found":
        is_whole = provider.kind != "openai" or WHOLE.search(urlsplit(provider.base_url).path)
        remedy = f"Set {setting} to a model that the server has."
        if not is_whole:
            remedy = f"{report.remedy(error.code)} If it does: {remedy.lower()}"
        report.fail(name, error.message, remedy)
    else:
        report.fault(name, error)
    return False


@contextlib.contextmanager
def _watched(generations: Generations, request: ChatRequest) -> Iterator[tuple[Run, Watch]]:
    """An answer that somebody follows; stopped at the end, if it is not over."""
    run = generations.start(request)
    viewer = generations.readers.view(run)
    watch = Watch(run.follow(0, viewer))
    try:
        yield run, watch
    finally:
        generations.stop(run.id, None)
        watch.exhaust()
        generations.readers.unview(run, viewer)


class Watch:
    """What is seen of an answer."""

    def __init__(self, groups: Iterator[list[tuple[int, Event]]]) -> None:
        self._groups = groups
        self.reads = 0  # groups that brought something
        self.began = False
        self.ended: Terminal | None = None

    def until_begun(self) -> None:
        """Read until the model has said something, or the answer is over."""
        while not self.began and self.ended is None:
            self.next()

    def to_end(self) -> Terminal:
        """Read until it is over."""
        while self.ended is None:
            self.next()
        return self.ended

    def exhaust(self) -> None:
        """Read what is left of an answer that is over, so that its connection is let go of."""
        for _ in self._groups:
            pass

    def next(self) -> None:
        """Read what comes next."""
        for _, event in next(self._groups):
            if is_terminal(event):
                self.ended = event
            elif isinstance(event, (Content, Reasoning, ToolCallDelta)):
                self.began = True
                self.reads += 1


def ask(prompt: str) -> ChatRequest:
    """A question by itself."""
    return ChatRequest([Message("user", prompt)])


def _answer(report: Report, generations: Generations) -> bool:
    """Ask for a short answer and see how it comes."""
    with _watched(generations, ask(SHORT)) as (_, watch):
        ended = watch.to_end()
    if isinstance(ended, Failed):
        report.fail("answer", ended.error.message, report.remedy(ended.error.code))
        return False
    figures = ended.metrics
    if not figures.chunks:
        report.fail("answer", "it is empty.", "Look at the model's server; try another model.")
        return False
    rate = figures.tokens_per_second
    pace = f", {rate:.0f} tokens/s" if rate else ""
    model = generations.upstream.known_model
    first = f"first token after {figures.ttft_ms or 0:.0f} ms{pace}"
    report.ok("answer", f"{model}: {first}" if model else first)
    _streaming(report, figures, watch.reads)
    if isinstance(ended, Done) and ended.usage:
        report.ok("usage", f"reported: {figures.tokens} tokens")
    else:
        report.warn(
            "usage",
            "the server reports no usage, so token counts are estimated.",
            "Nothing need be done; newer servers know stream_options.include_usage.",
        )
    return True


def _streaming(report: Report, figures: Metrics, reads: int) -> None:
    pieces = figures.chunks
    if pieces == 1:
        report.warn(
            "streaming",
            "the server does not stream: the whole answer came in 1 piece.",
            "Turn streaming on in the model's server or in the gateway before it, so that words "
            "are shown as they are written; a small answer may also be so short.",
        )
    elif pieces < PIECES_MIN:
        report.warn(
            "streaming",
            f"the whole answer came in {pieces} pieces.",
            "Turn streaming on in the model's server; a small answer may also be so short.",
        )
    elif pieces / max(1, reads) >= GATHERED:
        report.warn(
            "streaming",
            f"{pieces} pieces came in {reads} lumps: something between gathers them.",
            "Turn buffering off in the proxy before the model (nginx: `proxy_buffering off;`).",
        )
    else:
        gap = figures.gap_p50_ms or 0.0
        report.ok("streaming", f"{pieces} pieces, one by one, {gap:.0f} ms apart")


def _stop(report: Report, generations: Generations, load: ServerLoad) -> None:
    """Stop an answer in the middle; see what becomes of the connection, and of the model."""
    before = load.wait_idle(SETTLES_WITHIN).left
    with _watched(generations, ask(LONG)) as (run, watch):
        watch.until_begun()
        if isinstance(watch.ended, Failed):
            report.fail("stop", watch.ended.error.message, "Try again.")
            return
        during = None if before is None else load.count()
        receipt = generations.stop(run.id, None)
    spent = f"{receipt.elapsed_ms:.0f} ms"
    if receipt.status == "finished":
        remedy = "Try again; where a server does not stream, an answer is over when it comes."
        report.warn("stop", "the answer was over before Stop could be pressed.", remedy)
    elif receipt.upstream == "closed":
        report.ok("stop", f"the connection to the model was closed after {spent}")
        _after_stop(report, load, before, during)
    else:
        report.fail(
            "stop",
            f"the connection to the model is still {receipt.upstream} after {spent}.",
            "Report this with the name of the model's server.",
        )


def _after_stop(report: Report, load: ServerLoad, before: int | None, during: int | None) -> None:
    """See when the model's server is idle, where it says what it works on.

    `before` and `during` are the requests in work before the answer and while it was written.
    """
    name = "model stop"
    remedy = "See docs/stop.md: what is known of this server, and of proxies before it."
    if (before, during) == (0, 1):
        left, busy, over = load.wait_idle(WATCHED_AFTER_STOP)
    else:
        left, busy, over = None, 0.0, 0.0
    if any(known and known > most for known, most in ((before, 0), (during, 1), (left, 1))):
        text = f"not known: the server works on other requests at the same time ({load.source})"
        report.ok(name, text)
    elif left is None:
        report.ok(name, "not known: this server does not say what it works on (docs/stop.md)")
    elif left:
        text = f"the model writes on: {over:.1f} s after Stop the server still works on a request"
        report.warn(name, f"{text} ({load.source}).", remedy)
    elif over * 1000 > SLOW_STOP:
        text = f"the model stopped {busy:.1f} to {over:.1f} s after Stop ({load.source})."
        report.warn(name, text, remedy)
    else:
        text = f"the model had stopped {milliseconds(over)} after Stop ({load.source})"
        report.ok(name, text)


def _extras(report: Report, generations: Generations) -> None:
    """Whether the model's server takes tools and reasoning; nobody is worse off where not."""
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}}
    tool = ToolSpec.of_function("weather", "The weather in a city.", parameters)
    for name, request, setting in (
        ("tools", ChatRequest([Message("user", SHORT)], tools=[tool]), "tools"),
        (
            "reasoning",
            ChatRequest([Message("user", SHORT)], reasoning_effort="low"),
            "reasoning_effort",
        ),
    ):
        with _watched(generations, request) as (_, watch):
            watch.until_begun()
        if isinstance(watch.ended, Failed):
            message = watch.ended.error.message
            report.warn(name, message, f"Ask without `{setting}`, or another model.")
        elif not isinstance(watch.ended, Cancelled):
            report.ok(name, f"`{setting}` is accepted")
