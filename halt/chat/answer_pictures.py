"""Keeps the pictures of answers as files, in place of their data in the text and in the steps.

Models send pictures as data: URLs, in the text or beside it. The log of the generation keeps them
as they came, and so does the stored answer, until one thread of the process has kept each picture
as a file of the person. Then one transaction puts `![alt](/files/HASH)` in the places of the data
and gives the files to the answer. Who wins:

    an edit          is a version of its own; it is looked at when it is shown
    a Continue       an answer that is being written is left alone, and looked at after its end
    a discard        nothing is changed; the files have no message, and are removed a day later
    another worker   the transaction that comes second finds another text, and changes nothing
    the next prompt  the model gets `[picture]` in any case
    a crash, an end  the answer stays as it was, and is looked at when it is shown the next time

A picture that cannot be kept is replaced by its label with the reason; data of other kinds stays.
"""

from __future__ import annotations

import logging
import re
import threading
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from hashlib import blake2b

from halt.chat.uploads import PieceSource, Uploads
from halt.core.events import Extra
from halt.core.generation import Generation
from halt.core.serial import Serial
from halt.core.steps import Step
from halt.errors import StoreUnavailable, TooLarge
from halt.files.faults import FileError, ReadersBusy, UnknownKind
from halt.files.names import clean_name
from halt.rendering.pictures import Picture, has_data, incomplete_label, picture_of, swapped
from halt.store.models import UnknownFile
from halt.store.pictures import EndedAnswer, Pictures

PICTURES_MAX = 20  # pictures of one answer that are kept
LOOKED_MAX = 10_000  # answers of which the process knows that there is nothing to do
TRIES = 4  # attempts to keep the pictures of an answer
PAUSE = 1.0  # seconds between them
CLOSE_WAIT = 2.0  # seconds that `close` waits for the thread

#: Types that are kept. Pictures of other types (SVG) stay data in the text.
KEPT_TYPES = frozenset({"png", "apng", "jpeg", "jpg", "webp", "gif", "avif", "heic", "heif"})
_KEPT = re.compile(rf"data:image/(?:{'|'.join(sorted(KEPT_TYPES))})[;,]", re.IGNORECASE)
#: Data that is shorter is no picture.
_BYTES_MIN = 30

logger = logging.getLogger(__name__)


def is_unkept(text: str, steps: tuple[Step, ...]) -> bool:
    """Whether an answer may have pictures that are not kept yet."""
    return (has_data(text) and _KEPT.search(text) is not None) or any(
        step.kind == "picture" and _KEPT.match(step.result) for step in steps
    )


class _NotKept(Exception):
    """A picture cannot be kept; the argument is a sentence."""


class AnswerPictures:
    """See the module. Threads may share it."""

    def __init__(self, pictures: Pictures, uploads: Uploads) -> None:
        self._pictures = pictures
        self._uploads = uploads
        self._thread = Serial("halt-pictures")
        self._changed = threading.Condition()  # protects `_pending`
        self._pending: set[tuple[str, int]] = set()  # (person, message)
        #: With the stream's ID. Used by `_thread` alone.
        self._looked: OrderedDict[tuple[str, int], str] = OrderedDict()
        self._closing = threading.Event()

    def on_end(self, run: Generation, message_id: int, is_saved: Callable[[], bool]) -> None:
        """Keep the pictures of an answer that has just ended. `is_saved` waits for that."""
        events = [] if run.only_text else run.events(run.log.last)
        if has_data(run.answer()[1]) or any(isinstance(event, Extra) for _, event in events):
            self._add((run.owner, message_id), is_saved)

    def look(self, owner: str, message_id: int) -> None:
        """Keep the pictures of an answer in the store that is shown, unless that was done."""
        self._add((owner, message_id), lambda: True)

    def _add(self, key: tuple[str, int], is_saved: Callable[[], bool]) -> None:
        with self._changed:
            if key in self._pending:
                return
            self._pending.add(key)
        self._thread.start_late()
        self._thread.put(partial(self._work, key, is_saved))

    def wait(self, owner: str, message_id: int, timeout: float) -> bool:
        """Wait until an answer is not worked on; False after the timeout."""
        with self._changed:
            return self._changed.wait_for(lambda: (owner, message_id) not in self._pending, timeout)

    def close(self) -> None:
        """End the thread; the work that is left is done when the answers are shown again."""
        self._closing.set()
        self._thread.close(CLOSE_WAIT)

    # --- the thread -------------------------------------------------------------------------------

    def _work(self, key: tuple[str, int], is_saved: Callable[[], bool]) -> None:
        try:
            if not self._closing.is_set() and is_saved():
                self._try(*key)
        finally:
            with self._changed:
                self._pending.discard(key)
                self._changed.notify_all()

    def _try(self, owner: str, message_id: int) -> None:
        for tries_left in reversed(range(TRIES)):
            try:
                self._keep(owner, message_id)
                return
            except (ReadersBusy, StoreUnavailable, UnknownFile, OSError) as fault:
                if not tries_left:
                    logger.warning("the pictures of an answer are not kept yet: %s", fault)
            if self._closing.wait(PAUSE):
                return

    def _keep(self, owner: str, message_id: int) -> None:
        """Keep the pictures of an answer. Raises the faults after which `_try` tries again."""
        key = owner, message_id
        before = self._pictures.get(owner, message_id)
        if before is None or self._looked.get(key) == before.stream_id:
            return
        if is_unkept(before.text, before.steps):
            work = _Work(self._uploads, owner, before, self._closing)
            after = work.answer()
            if after is None or (
                after != before and not self._pictures.replace(owner, before, after)
            ):
                return
        self._looked[key] = before.stream_id
        while len(self._looked) > LOOKED_MAX:
            self._looked.popitem(last=False)


class _Work:
    """One attempt to keep the pictures of one answer."""

    def __init__(
        self, uploads: Uploads, owner: str, before: EndedAnswer, closing: threading.Event
    ) -> None:
        self._uploads = uploads
        self._owner = owner
        self._before = before
        self._closing = closing
        self._kept: dict[bytes, tuple[str, str] | str] = {}  # by a digest of the data
        self._new: dict[str, str] = {}  # names by hashes

    def answer(self) -> EndedAnswer | None:
        """The answer with its pictures; None if the process is ending."""
        before = self._before
        with suppress(_Ending):
            text = swapped(before.text, self._swap)
            steps = tuple(map(self._step, before.steps))
            prefixes = {
                stream_id: len(swapped(before.text[:characters], self._swap))
                for stream_id, characters in before.prefixes.items()
            }
            pictures = {**before.pictures, **self._new}
            return replace(before, text=text, steps=steps, pictures=pictures, prefixes=prefixes)
        return None

    def _swap(self, picture: Picture) -> str | None:
        """What replaces a picture in the text; None: it stays."""
        if not _is_kept_type(picture):
            return None
        if not picture.is_complete:
            return incomplete_label(picture)
        kept = self._keep(picture)
        if isinstance(kept, str):
            return f"[{picture.label}. Not kept: {kept}]"
        return f"![{_alt(picture)}](/files/{kept[0]})"

    def _step(self, step: Step) -> Step:
        picture = picture_of(step.result) if step.kind == "picture" else None
        if picture is None or not _is_kept_type(picture):
            return step
        kept = self._keep(picture)
        if isinstance(kept, str):
            return replace(step, text=f"{step.text}. Not kept: {kept}", result="")
        return replace(step, result=f"/files/{kept[0]}")

    def _keep(self, picture: Picture) -> tuple[str, str] | str:
        """Keep a picture: its hash and name, or the reason why it is not kept."""
        digest = blake2b(picture.data.encode(), digest_size=16).digest()
        if digest not in self._kept:
            try:
                self._kept[digest] = kept = self._taken(picture)
                self._new[kept[0]] = kept[1]
            except _NotKept as fault:
                self._kept[digest] = str(fault)
        return self._kept[digest]

    def _taken(self, picture: Picture) -> tuple[str, str]:
        if len({*self._before.pictures, *self._new}) >= PICTURES_MAX:
            raise _NotKept(f"An answer has at most {PICTURES_MAX} pictures.")
        name = clean_name(f"{_alt(picture) or 'picture'}.{picture.media_type.partition('/')[2]}")
        try:
            taken = self._uploads.take(self._owner, name, PieceSource(picture.content()))
        except UnknownKind:
            reason = "It is no image that Halt reads."
        except FileError as fault:
            reason = fault.reason
        except TooLarge as fault:
            reason = fault.message.removeprefix(f"{name}: ")
        except ValueError:
            reason = "Its data is damaged."
        else:
            if taken.facts.kind == "image":
                ending = taken.facts.media_type.partition("/")[2]
                return taken.file.hash, f"{taken.name.rpartition('.')[0] or 'picture'}.{ending}"
            reason = "It is no image."
        if self._closing.is_set():  # the end of the reading processes may be the reason
            raise _Ending
        raise _NotKept(reason)


class _Ending(Exception):
    """The process is ending."""


def _is_kept_type(picture: Picture) -> bool:
    kind = picture.media_type.lower().partition("/")[2]
    return kind in KEPT_TYPES and len(picture.data) >= _BYTES_MIN


def _alt(picture: Picture) -> str:
    """The alt text, without what would end Markdown's image before its end."""
    return picture.alt.replace("\\", "").strip()
