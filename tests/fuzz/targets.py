"""All targets by name, in the order of a run."""

from __future__ import annotations

from tests.fuzz.frames import Frames
from tests.fuzz.http_bodies import Http1
from tests.fuzz.imports import Import
from tests.fuzz.lexers import Lexers
from tests.fuzz.markdown import LightTime, Markdown, MarkdownTime, OpenParts, StreamTime
from tests.fuzz.provider import Chat, Messages
from tests.fuzz.requests import Requests
from tests.fuzz.target import Target

TARGETS: dict[str, type[Target]] = {
    target.name: target
    for target in (
        *(Chat, Messages, Http1, Markdown, OpenParts, MarkdownTime, LightTime, StreamTime, Lexers),
        *(Frames, Requests, Import),
    )
}
