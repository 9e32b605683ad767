"""What the API answers, as types: routes write them, and openapi.yaml has their schemas."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from halt.core.events import CancelReason, ErrorInfo
from halt.core.metrics import Metrics
from halt.core.receipts import Receipt, RunningStream
from halt.core.request import StreamId
from halt.errors import HaltError


class Reply(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Fields that are not named here are never sent."""


class ErrorDetail(Reply, frozen=True):
    """`code` is for programs, `message` for people; `field` names the part that is at fault.

    `retryable`: the same request may succeed later. `request_id`: as in the header X-Request-Id.
    """

    code: str
    message: str
    retryable: bool
    request_id: str
    field: str | msgspec.UnsetType = msgspec.UNSET


class Error(Reply, frozen=True):
    """Why a request was refused, or failed."""

    error: ErrorDetail


class OpenAIErrorDetail(Reply, frozen=True):
    """An error in OpenAI's words."""

    message: str
    type: str
    param: str | None
    code: str


class OpenAIError(Reply, frozen=True):
    """Why a request was refused, or failed, in the shape that OpenAI's clients know."""

    error: OpenAIErrorDetail


class StreamLost(Reply, frozen=True, tag_field="type", tag="error"):
    """The last event of a reader whose next events are no longer kept, or of a stream that is not.

    It has no number, and the stream itself has not ended by it.
    """

    done: bool
    content: str
    error: ErrorInfo

    @classmethod
    def from_error(cls, fault: HaltError) -> StreamLost:
        return cls(True, "", ErrorInfo(fault.code, fault.message, retryable=False))


class CalledTool(Reply, frozen=True):
    """A tool that the model has called. `arguments` is JSON as the model wrote it."""

    id: str
    name: str
    arguments: str


class WholeAnswer(Reply, frozen=True):
    """An answer from its beginning to its end."""

    id: StreamId
    model: str
    state: Literal["done", "cancelled"]
    content: str
    finish_reason: str | None
    usage: dict[str, Any] | None
    metrics: Metrics
    reason: CancelReason | msgspec.UnsetType = msgspec.UNSET
    reasoning: str | msgspec.UnsetType = msgspec.UNSET
    tool_calls: list[CalledTool] | msgspec.UnsetType = msgspec.UNSET


class Streams(Reply, frozen=True):
    """The streams that are running."""

    streams: list[RunningStream]


class Stopped(Reply, frozen=True):
    """What was done to each stream that was running."""

    stopped: list[Receipt]


class RelayFigures(Reply, frozen=True):
    """The relay thread of the worker that answers, within the last minute or two.

    `longest_turn_ms`: the longest time for which it served sockets before it waited again.
    `lag_ms`: the longest time from a wake-up, by a Stop for instance, until it was served.
    """

    longest_turn_ms: float
    lag_ms: float


class Health(Reply, frozen=True):
    """`upstream`: "reachable", "reachable: CODE" (it refuses Halt: a wrong key, no quota left),
    "unreachable: CODE", or "unknown" until the first answer.

    `open_streams` are those of all `workers`; `worker` is the one that answers.
    """

    status: Literal["ok", "draining"]
    version: str
    open_streams: int
    workers: int
    worker: str
    relay: RelayFigures
    upstream: str


class AboutRun(Reply, frozen=True):
    """What Halt knows of the run and OpenAI's answer has no field for."""

    id: StreamId
    state: Literal["done", "cancelled"]
    metrics: Metrics
    reason: CancelReason | msgspec.UnsetType = msgspec.UNSET
    finish_reason: str | msgspec.UnsetType = msgspec.UNSET


class Model(Reply, frozen=True):
    """A model that can be asked."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class Models(Reply, frozen=True):
    """The models that can be asked."""

    object: Literal["list"]
    data: list[Model]
