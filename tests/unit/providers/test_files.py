"""Files in requests: as parts of each kind of provider, and as text where a server refuses them."""

from __future__ import annotations

import base64
import io
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from PIL import Image

from halt.chat.file_contents import data_url
from halt.config.providers import Kind, ProviderSettings
from halt.core.connection import UpstreamConnection
from halt.core.json_pieces import PIECE
from halt.core.parts import FilePart
from halt.core.request import Message, Upstream, files_as_text, has_files
from halt.model_info import UNKNOWN, Abilities
from halt.providers.factory import make_provider
from halt.testing.fake_openai import FakeOpenAI
from halt.transport.pool import Transport
from tests.support.files import image, pdf
from tests.support.provider_answers import KEY, refusal_of, request_answer
from tests.support.waiting import WAIT_TIMEOUT

Make = Callable[..., Upstream]

PDF = base64.b64encode(pdf(["One."])).decode()
PNG = "data:image/png;base64," + base64.b64encode(image(40, 30)).decode()
FILE = FilePart("a.pdf", f"data:application/pdf;base64,{PDF}", "# a.pdf\n\nOne.")
IMAGE = {"type": "image_url", "image_url": {"url": PNG}}
LOOK = {"type": "text", "text": "Look."}
WITH_FILE = [Message("user", [FILE, LOOK])]
WITH_BOTH = [Message("user", [IMAGE, FILE, LOOK])]


@pytest.fixture(params=["openai", "azure", "anthropic"])
def make(request: pytest.FixtureRequest, fake: FakeOpenAI) -> Iterator[Make]:
    """Makes providers of each kind; closes them at the end."""
    kind: Kind = request.param
    upstreams: list[Upstream] = []

    def make() -> Upstream:
        base_url = fake.base_url if kind == "openai" else fake.origin
        settings = ProviderSettings(
            name=kind, kind=kind, base_url=base_url, key=KEY, api_version="2024-10-21"
        )
        upstreams.append(make_provider(settings, Transport(WAIT_TIMEOUT)))
        return upstreams[-1]

    yield make
    for upstream in upstreams:
        upstream.close()


def test_image_and_file_arrive_as_they_are(make: Make) -> None:
    """Every kind of provider sends the bytes of the image and of the PDF, and its name."""
    size = len(base64.b64decode(PDF))
    answer = request_answer(make(), "vision", messages=WITH_BOTH)
    assert answer.text == (
        f"1 image: image/png 40x30. 1 file: application/pdf a.pdf {size} bytes. Look."
    )


def test_large_image_arrives_whole_in_a_body_of_known_length(make: Make, fake: FakeOpenAI) -> None:
    """A body that is sent in pieces is the same JSON: many servers take no chunked bodies."""
    noise = io.BytesIO()
    Image.frombytes("RGB", (700, 500), random.Random(1).randbytes(700 * 500 * 3)).save(noise, "PNG")
    url = data_url("image/png", noise.getvalue())
    assert len(url) > 4 * PIECE
    parts = [{"type": "image_url", "image_url": {"url": url}}, LOOK]
    upstream = make()
    for _ in range(2):  # the second on the connection of the first
        answer = request_answer(upstream, "vision", messages=[Message("user", parts)])
        assert answer.text == "1 image: image/png 700x500. Look."
    assert "transfer-encoding" not in fake.requests[0].headers
    assert base64.b64decode(url.partition(",")[2]) == noise.getvalue()


@pytest.mark.parametrize("status", [400, 413, 422, 500])
def test_refused_file_is_sent_as_text(make: Make, status: int) -> None:
    """The same request goes on with the file's text; its images stay."""
    answer = request_answer(make(), f"no_files?status={status}", messages=WITH_BOTH)
    assert answer.fault is None
    assert answer.text.startswith("1 image: image/png 40x30. # a.pdf")
    assert answer.text.endswith("Look.")


def test_model_that_refuses_files_gets_no_other_one(make: Make, fake: FakeOpenAI) -> None:
    """After a refusal of files in general the text goes at once, for that model alone."""
    upstream = make()
    for model in ("no_files", "no_files", "vision"):
        assert request_answer(upstream, model, messages=WITH_FILE).fault is None
    assert [sends_file(record.body) for record in fake.requests] == [True, False, False, True]


def test_too_large_file_says_nothing_of_others(make: Make, fake: FakeOpenAI) -> None:
    """After a refusal for the size the next file is sent as a file again."""
    upstream = make()
    for _ in range(2):
        assert request_answer(upstream, "no_files?status=413", messages=WITH_FILE).fault is None
    assert [sends_file(record.body) for record in fake.requests] == [True, False] * 2


def test_fault_of_the_request_with_text_is_shown(make: Make, fake: FakeOpenAI) -> None:
    """The text helps nothing here: the error is that of the second request, in one refusal."""
    answer = request_answer(make(), "400", messages=WITH_FILE)
    refusal_of(answer, "bad_request")
    assert [sends_file(record.body) for record in fake.requests] == [True, False]


@pytest.mark.parametrize("model", ["401", "429", "503"])
def test_other_fault_is_shown_at_once(make: Make, fake: FakeOpenAI, model: str) -> None:
    """A wrong key, a rate limit or an outage does not speak of files."""
    assert request_answer(make(), model, messages=WITH_FILE).fault is not None
    assert len(fake.requests) == 1


@pytest.mark.parametrize(
    ("kind", "address", "abilities"),
    [
        ("openai", "https://api.openai.com/v1", Abilities(pdf=True)),
        ("openai", "https://llm.example/v1", UNKNOWN),
        ("azure", "https://a.openai.azure.com", UNKNOWN),
        ("anthropic", "https://api.anthropic.com", Abilities(pdf=True, parts_bytes=23_000_000)),
        ("anthropic", "https://llm.example", UNKNOWN),
    ],
)
def test_models_that_read_pdfs_are_known_by_their_server(
    kind: Kind, address: str, abilities: Abilities
) -> None:
    """Where the list of models does not say it, the two providers' own models read PDFs."""
    settings = ProviderSettings(name="a", kind=kind, base_url=address, key=KEY, models=("m",))
    upstream = make_provider(settings, Transport(WAIT_TIMEOUT))
    (group,) = upstream.catalog(UpstreamConnection())
    upstream.close()
    assert [model.abilities for model in group.models] == [abilities]


def test_files_as_text_makes_one_text_of_texts() -> None:
    """A list of texts alone becomes one text; a message without files stays the same object."""
    hi = Message("user", "hi")
    with_file, with_both, same = files_as_text([*WITH_FILE, *WITH_BOTH, hi])
    assert with_file == {"role": "user", "content": "# a.pdf\n\nOne.\n\nLook."}
    assert with_both.content == [IMAGE, {"type": "text", "text": "# a.pdf\n\nOne."}, LOOK]
    assert same is hi
    messages = [hi]
    assert files_as_text(messages) is messages


def test_data_does_not_count_as_characters() -> None:
    """The limit on characters is for texts: models do not read the data as text."""
    with_data = Message("user", [IMAGE, FILE, LOOK])
    assert has_files(with_data)
    assert with_data.size < 150
    text = "日本\n" * 100  # more bytes, and more characters as JSON
    assert Message("user", [{"type": "text", "text": text}]).size == len(text)
    assert not has_files(Message("user", [LOOK]))
    by_url = Message("user", [{"type": "image_url", "image_url": {"url": "https://example.org/a"}}])
    assert not has_files(by_url)


def sends_file(body: Any) -> bool:
    """Whether a recorded request has a part with a file."""
    content = body["messages"][0]["content"]
    return not isinstance(content, str) and any(
        part["type"] in {"file", "document"} for part in content
    )
