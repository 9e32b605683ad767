"""Run a Halt without settings beside model servers on their usual ports; exit status 0 on success.

Run it in its own network namespace, where nothing else listens.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from tests.support.halt_server import HaltServer
from tests.support.model_servers import LOCKED, NOT_OFFERED, OFFERED
from tests.support.raw_server import RawServer
from tests.support.waiting import SERVER_TIMEOUT, wait_until

SERVERS = {
    11434: OFFERED["ollama"],
    8080: OFFERED["llama.cpp"],
    1337: LOCKED,
    5000: NOT_OFFERED["airplay"],
}
HELLO = [{"role": "user", "content": "Hello."}]


def model_ids(halt: HaltServer) -> list[str]:
    """The model IDs that programs get."""
    return [model["id"] for model in halt.client().get("/v1/models").json["data"]]


LOCKED_TEXT = (
    "http://127.0.0.1:1337 (the port of Jan) needs a key: connect it on the page “Models”, or set "
    "OPENAI_BASE_URL and OPENAI_API_KEY"
)


def group_labels(options: str) -> list[str]:
    """The labels in the page's list of models."""
    return re.findall(r'<optgroup label="([^"]+)"', options)


def check_discovery() -> None:
    """Servers that answer are offered and printed in one line; a later server is offered as well."""
    halt = HaltServer({"HALT_DISCOVER": "1", "PORT": "8000", "WEB_CONCURRENCY": "2"})
    try:
        assert halt.wait_printed(r"Model server: (.*)\n")[1] == (
            "3 models of Ollama at http://127.0.0.1:11434, 1 of llama.cpp at "
            f"http://127.0.0.1:8080; {LOCKED_TEXT}"
        )
        assert "demo model" not in halt.printed
        first = ["ollama/nomic-embed-text:latest", "ollama/llama3.2:latest", "ollama/qwen3:8b"]
        assert model_ids(halt) == [*first, "llama.cpp/gemma.gguf"]
        client = halt.client()
        with client.stream("POST", "/chat/stream", {"messages": HELLO}) as events:
            assert events.to_end().text == "qwen3:8b answers."  # the model that is loaded
        assert client.chat("gemma.gguf").to_end().text == "gemma.gguf answers."
        page = client.get("/").body.decode()
        assert "Demo model" not in page
        assert "No model" not in page
        with RawServer(OFFERED["lmstudio"], port=1234):  # every worker discovers the server itself
            wait_until(lambda: "lmstudio/gpt-oss" in model_ids(halt), SERVER_TIMEOUT)
            wait_until(
                lambda: client.chat("lmstudio/gpt-oss").to_end().text == "gpt-oss answers.",
                SERVER_TIMEOUT,
            )
            wait_until(
                lambda: (
                    group_labels(client.get("/models").body.decode())
                    == [
                        "Ollama",
                        "llama.cpp",
                        "LM Studio",
                        LOCKED_TEXT,
                    ]
                ),
                SERVER_TIMEOUT,
            )
    finally:
        halt.close()


@contextlib.contextmanager
def halt_on_all_interfaces() -> Iterator[None]:
    """Run a Halt that -b opens to other machines: it offers no server of this machine.

    It listens on the port of a model server and has a token; other Halts skip it.
    """
    settings = {"HALT_DISCOVER": "1", "HALT_TOKEN": "of-another-halt"}
    halt = HaltServer(settings, "-b", "0.0.0.0:5001")
    try:
        model_server = halt.wait_printed(r"Model server: (.*)\n")[1]
        assert re.match(r"the demo model|none\. ", model_server), model_server
        assert "Ollama" not in model_server
        yield
    finally:
        halt.close()


if __name__ == "__main__":
    with contextlib.ExitStack() as stack:
        for port, handler in SERVERS.items():
            stack.enter_context(RawServer(handler, port=port))
        stack.enter_context(halt_on_all_interfaces())
        check_discovery()
