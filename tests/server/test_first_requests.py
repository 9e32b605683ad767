"""First requests to a new server: they build nothing, and none is lost.

If a decoder is built at its first use, several threads build it at once during a burst. msgspec's
types do not survive that: the worker crashes (docs/msgspec-race.md).
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from halt.rendering.highlighting import Colours
from halt.rendering.markdown import render
from halt.testing.fake_openai import FakeOpenAI
from tests.support.halt_server import ROOT, HaltServer, halt_environment
from tests.support.request_burst import send_burst, send_bursts

STARTS = 10

SOURCES = sorted([*(ROOT / "halt").rglob("*.py"), ROOT / "app.py", ROOT / "gunicorn.conf.py"])

#: Types that Halt only encodes: no decoder is made for them.
NEVER_DECODED = {
    "core.request.Part",
    "core.receipts.Health",
    "library.handle.Result",
    "web.api.openai_request.CompletionRequest",
    "store.portable.PortableConversation",
    "store.portable._Message",  # its two subclasses are decoded
    "web.event_stream.Answer",
    "web.schemas.AboutRun",
    "web.schemas.CalledTool",
    "web.schemas.Error",
    "web.schemas.ErrorDetail",
    "web.schemas.Health",
    "web.schemas.StreamLost",
    "web.schemas.Model",
    "web.schemas.Models",
    "web.schemas.OpenAIError",
    "web.schemas.OpenAIErrorDetail",
    "web.schemas.RelayFigures",
    "web.schemas.Reply",
    "web.schemas.Stopped",
    "web.schemas.Streams",
    "web.schemas.WholeAnswer",
}

#: Functions of msgspec that build the types in their arguments, if they are not built yet.
BUILDERS = {
    "msgspec.convert",
    "msgspec.inspect.type_info",
    "msgspec.inspect.multi_type_info",
    "msgspec.json.schema",
    "msgspec.json.schema_components",
    *(f"msgspec.{form}.Decoder" for form in ("json", "msgpack")),
    *(f"msgspec.{form}.decode" for form in ("json", "msgpack", "toml", "yaml")),
}

#: Functions that may call one of BUILDERS, as the types have been built before.
ALLOWED_CALLS = {
    ("halt/core/decoding.py", "TypeDecoder.__init__"),  # called at import time: see below
    ("halt/core/decoding.py", "TypeDecoder.convert"),
    ("halt/config/provider_file.py", "_checked"),
    ("halt/core/tools.py", "_schema"),  # called by Tool.__init__ alone
    ("halt/core/tools.py", "Tool.__init__"),  # tools are made before they are offered
}


def building_calls(path: Path) -> list[tuple[str, str]]:
    """(function, call) of each call in a function that may build a type."""
    calls: list[tuple[str, str]] = []

    def visit(node: ast.AST, scope: tuple[str, ...], in_function: bool) -> None:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            scope = (*scope, node.name)
            in_function = in_function or not isinstance(node, ast.ClassDef)
        if isinstance(node, ast.Lambda):
            in_function = True
        if isinstance(node, ast.Call) and in_function:
            function_name = ast.unparse(node.func)
            untyped = function_name.endswith(".decode") and all(
                k.arg != "type" for k in node.keywords
            )
            if function_name == "TypeDecoder" or (function_name in BUILDERS and not untyped):
                calls.append((".".join(scope), function_name))
        for child in ast.iter_child_nodes(node):
            visit(child, scope, in_function)

    visit(ast.parse(path.read_text()), (), False)
    return calls


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_decoders_are_made_at_import(path: Path) -> None:
    """No function passes a bare type to msgspec: that builds its tables at the first call."""
    file_name = path.relative_to(ROOT).as_posix()
    functions = {function for function, _ in building_calls(path)}
    assert functions == {function for file, function in ALLOWED_CALLS if file == file_name}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_msgspec_has_no_alias(path: Path) -> None:
    """msgspec is imported under its own name alone, so that the test above finds every call."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert (node.module or "").partition(".")[0] != "msgspec"
        if isinstance(node, ast.Import):
            assert not [a for a in node.names if a.name.startswith("msgspec") and a.asname]
    for node in ast.walk(tree):  # `decode = msgspec.json.decode` would be an alias, too
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            assert ast.unparse(node.value) not in BUILDERS


def test_types_are_built_by_the_imports() -> None:
    """Every decoded type, and every type in its fields, is built before the first request."""
    printed = subprocess.run(
        [sys.executable, "-m", "tests.support.struct_tables"],
        cwd=ROOT,
        env=halt_environment({}),
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    result = json.loads(printed)
    assert {"core.request.ChatRequest", "web.websocket.messages.Start", "cli.source._Models"} <= {
        *result["built"]
    }
    assert {*result["unbuilt"]} == NEVER_DECODED


class Ready(HaltServer):
    """See `tests.support.ready_app`."""

    command = ("-m", "gunicorn", "tests.support.ready_app:app")


PROVIDERS = """
default = "one/count?n=3"
[providers.one]
kind = "openai"
base_url = "{openai}"
key_env = "FAKE_KEY"
models = ["count?n=3", "echo", "tool_call"]
[providers.two]
kind = "anthropic"
base_url = "{anthropic}"
key_env = "FAKE_KEY"
models = ["markdown"]
"""


NO_NEW: dict[str, set[str]] = {"modules": set(), "templates": set(), "types": set()}


def test_first_requests_build_nothing(fake: FakeOpenAI, tmp_path: Path) -> None:
    """The first requests of all kinds import no module, compile no template and build no type."""
    file = tmp_path / "providers.toml"
    file.write_text(PROVIDERS.format(openai=fake.base_url, anthropic=fake.origin))
    server = Ready(
        {
            "HALT_CONFIG": str(file),
            "FAKE_KEY": "fake-key",
            "HALT_TOOLS": "calculator,current_time",
            "HALT_TITLES": "model",
            "HALT_RATE_SESSION": "1000/minute",
            "HALT_RATE_ADDRESS": "1000/minute",
        }
    )
    try:
        client = server.client()
        before = client.get("/built").json
        assert send_burst(server.host, server.port) == (50, [])
        for model in ("one/tool_call", "two/markdown", "two/echo", "none/none"):
            client.chat(model).to_end()
        after = client.get("/built").json
        assert before["templates"]  # the count works
        assert {kind: {*after[kind]} - {*before[kind]} for kind in after} == NO_NEW
    finally:
        server.close()


@pytest.mark.slow
def test_burst_on_a_fresh_server_is_answered(shared_fake: FakeOpenAI) -> None:
    """Fifty concurrent requests of all kinds on a fresh server are all answered."""
    outcomes = list(send_bursts(STARTS, shared_fake.base_url))
    assert [lost for _, lost in outcomes if lost] == []
    assert [count for count, _ in outcomes] == [50] * STARTS


def test_first_highlighting_by_several_threads_works() -> None:
    """Several threads may highlight a language first; pygments compiles it in one thread."""
    text = "```tsx\nconst a = <b c={`x ${d}`}>{1}</b> // e\n```\n"
    start, pages = threading.Barrier(8), []

    def highlight() -> None:
        start.wait()
        pages.append(render(text, Colours()))

    threads = [threading.Thread(target=highlight) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert pages == [render(text, Colours())] * 8
