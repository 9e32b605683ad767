"""The errors of files. Each message begins with the file's name; none has more of its content."""

from __future__ import annotations

from halt.errors import HaltError, TooLarge


class FileError(HaltError):
    """A file cannot be taken; nothing of it was kept."""

    def __init__(self, name: str, reason: str) -> None:
        """`reason`: a sentence for the user."""
        super().__init__(f"{name}: {reason}", field="file")
        self.reason = reason


class UnknownKind(FileError):
    """Halt does not read files of this kind."""

    code = "file_kind"
    status = 415


class Unreadable(FileError):
    """The file is damaged or encrypted, lies about its type, or takes too long to read."""

    code = "file_unreadable"
    status = 422


class FileTooLarge(FileError):
    """The file is over a limit: of bytes, pixels, or what it unpacks to."""

    code = "file_too_large"
    status = 413


def over_limit(name: str, limit: int) -> TooLarge:
    """The error of a file of more bytes than HALT_MAX_FILE_BYTES."""
    return TooLarge(f"{name}: The file is larger than {limit / 1e6:,.0f} MB.", field="file")


class ReadersBusy(HaltError):
    """Too many files wait to be read."""

    code = "at_capacity"
    status = 503
    retryable = True
