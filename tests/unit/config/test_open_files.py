"""The number of streams that a limit on open files allows, and the limit that streams need."""

from __future__ import annotations

import pytest

from halt.config.open_files import files_for, reserved_files, streams_for


@pytest.mark.parametrize("stream_count", [1, 20, 32, 33, 500, 2_000])
def test_the_needed_limit_is_the_lowest_that_allows_the_streams(stream_count: int) -> None:
    """The limit that a number of streams needs is the lowest that allows them."""
    files = files_for(stream_count)
    assert streams_for(files) >= stream_count
    assert streams_for(files - 1) < stream_count


def test_documented_limits() -> None:
    """docs/configuration.md has the number of files that the default of HALT_MAX_STREAMS needs."""
    assert files_for(500) == 1_504


@pytest.mark.parametrize("files", [1, 96, 160, 180, 256, 1_024])
def test_each_stream_has_two_files(files: int) -> None:
    """A stream takes a reserved file for its connection to the model, and a file for its client."""
    stream_count = streams_for(files)
    assert stream_count <= max(0, reserved_files(files))
    assert stream_count <= max(0, files - reserved_files(files))
