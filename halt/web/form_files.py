"""The files of forms: kept in the data folder while they arrive, as files alone are."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from typing import IO, cast

from flask import Request
from gunicorn.http.errors import ParseException
from werkzeug.exceptions import ClientDisconnected

from halt.chat.uploads import DISK_FULL
from halt.errors import RequestError, StoreUnavailable
from halt.web.services import services

IN_MEMORY = 500_000  # bytes of a form's file above which it is on the disk


class FormRequest(Request):
    """A request. The folder for temporary files of the system may be in memory."""

    def _get_file_stream(
        self,
        total_content_length: int | None,
        content_type: str | None,
        filename: str | None = None,
        content_length: int | None = None,
    ) -> IO[bytes]:
        folder = services().config.data_folder
        return cast(IO[bytes], tempfile.SpooledTemporaryFile(IN_MEMORY, dir=str(folder)))


@contextlib.contextmanager
def breaks_off() -> Iterator[None]:
    """Context manager: raises RequestError if the client leaves, is too slow, or sends malformed
    chunks; StoreUnavailable if the disk is full."""
    try:
        yield
    except (OSError, ParseException, ClientDisconnected) as exc:
        if isinstance(exc, OSError) and exc.errno in DISK_FULL:  # of a form, which is spooled
            raise StoreUnavailable("The disk is full.", "the disk is full") from exc
        raise RequestError("The upload broke off.", field="body") from exc
