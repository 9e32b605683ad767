"""The types of the API's responses. openapi.yaml has their schemas."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from halt.core.events import CancelReason, ErrorInfo
from halt.core.metrics import Metrics
from halt.core.receipts import Receipt, RunningStream
from halt.core.request import StreamId
from halt.errors import HaltError


class Reply(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A response body: it has the declared fields and no others."""


class ErrorDetail(Reply, frozen=True):
    """`code` is for programs, `message` for people. `field` names the wrong field of the request.

    `retryable`: the same request may succeed later. `request_id`: as in the header X-Request-Id.
    """

    code: str
    message: str
    retryable: bool
    request_id: str
    field: str | msgspec.UnsetType = msgspec.UNSET


class Error(Reply, frozen=True):
    """The reason why a request was refused or failed."""

    error: ErrorDetail


class OpenAIErrorDetail(Reply, frozen=True):
    """An error in OpenAI's format."""

    message: str
    type: str
    param: str | None
    code: str


class OpenAIError(Reply, frozen=True):
    """The reason why a request was refused or failed, in OpenAI's format."""

    error: OpenAIErrorDetail


class StreamLost(Reply, frozen=True, tag_field="type", tag="error"):
    """Sent when the stream, or the reader's next event, is no longer kept. The response then ends.

    It has no number and is not part of the stream, which may still run.
    """

    done: bool
    content: str
    error: ErrorInfo

    @classmethod
    def from_error(cls, fault: HaltError) -> StreamLost:
        return cls(True, "", ErrorInfo(fault.code, fault.message, retryable=False))


class CalledTool(Reply, frozen=True):
    """A tool call of the model. `arguments` is JSON as the model wrote it."""

    id: str
    name: str
    arguments: str


class WholeAnswer(Reply, frozen=True):
    """A complete answer."""

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
    """The running streams."""

    streams: list[RunningStream]


class Stopped(Reply, frozen=True):
    """The receipts of all streams that were running."""

    stopped: list[Receipt]


class RelayFigures(Reply, frozen=True):
    """Figures of this worker's relay thread over the last one to two minutes.

    `longest_turn_ms`: the longest time that the thread served sockets between two waits.
    `lag_ms`: the longest time from a wake-up (for example by a Stop) until it was served.
    """

    longest_turn_ms: float
    lag_ms: float


class Health(Reply, frozen=True):
    """`upstream`: the model's server is "reachable", "reachable: CODE" (it refuses Halt: wrong key,
    no quota), "unreachable: CODE", or "unknown" until its first response.

    `open_streams`: the count over all `workers`. `worker`: the ID of the worker that responds.
    """

    status: Literal["ok", "draining"]
    version: str
    open_streams: int
    workers: int
    worker: str
    relay: RelayFigures
    upstream: str


class AboutRun(Reply, frozen=True):
    """Facts about the run that have no field in OpenAI's format."""

    id: StreamId
    state: Literal["done", "cancelled"]
    metrics: Metrics
    reason: CancelReason | msgspec.UnsetType = msgspec.UNSET
    finish_reason: str | msgspec.UnsetType = msgspec.UNSET


class Model(Reply, frozen=True):
    """A model that requests may name."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class Models(Reply, frozen=True):
    """The models that requests may name."""

    object: Literal["list"]
    data: list[Model]
