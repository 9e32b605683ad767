"""The key of a stream: the person and the stream's ID, which clients choose."""

from __future__ import annotations

from typing import NamedTuple


class StreamKey(NamedTuple):
    """Two people may use the same ID, and neither learns of the other's stream.

    `owner` is the ID of a person (`halt.people`), "" in the library and in terminals.
    """

    owner: str
    id: str
