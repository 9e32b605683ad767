"""Use cases of conversations: send, edit, regenerate, continue, discard, select, show a version.

Each use case changes the store; those that need an answer also start its run. The caller passes the
person who owns the conversation, so no request context is needed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

from halt.chat.answer_pictures import AnswerPictures, is_unkept
from halt.chat.file_contents import check_limits, messages_with_files
from halt.chat.progress import AnswerProgress
from halt.chat.titles import Titles
from halt.clock import now
from halt.config.settings import Config
from halt.core.events import Done
from halt.core.generation import Generation
from halt.core.request import ChatRequest, Message
from halt.core.run import Run
from halt.core.service import GenerationService
from halt.core.stream_key import StreamKey
from halt.core.tools import Toolbox
from halt.errors import RequestError, StoreUnavailable, TooLarge, UnknownStream
from halt.files.names import clean_name
from halt.model_info import UNKNOWN, Abilities
from halt.providers.continuation import continuation_request
from halt.rendering import data_urls
from halt.store.files import GONE
from halt.store.models import (
    MOVED,
    Busy,
    Conversation,
    Exchange,
    Moved,
    UnknownConversation,
    UnknownFile,
    Usage,
)
from halt.store.store import Store
from halt.store.writer import StoreWriter

#: Seconds that a request waits until an answer that has ended is saved.
WRITE_WAIT = 2.0
WRITE_TICK = 0.01  # seconds before the first retry; each further pause is twice as long
WRITE_TICK_MAX = 0.16  # seconds

P = ParamSpec("P")
T = TypeVar("T")


class Started(NamedTuple):
    """The result of a use case that starts runs."""

    conversation: Conversation  # its last exchange only
    run: Run  # of the first answer


@dataclass(frozen=True)
class ChatService:
    """The conversations of one application. Threads may share it."""

    config: Config
    generations: GenerationService
    store: Store
    store_writer: StoreWriter  # the one that the generation service uses
    titles: Titles
    tools: Toolbox  # offered to the models
    #: Counts starts of the requesting browser; with `hit=False` it only checks whether they are
    #: allowed. Raises TooManyRequests, RequestError.
    count_starts: Callable[..., None]
    #: Raises UpstreamError if no model is set up.
    require_model: Callable[[], None]
    #: What is known of a model, "" for the default one.
    abilities: Callable[[str], Abilities]
    pictures: AnswerPictures
    answer_progress: AnswerProgress = field(default_factory=AnswerProgress)

    def system_prompt(self, model: str | None = "", conversation_prompt: str | None = None) -> str:
        """`conversation_prompt`; the default system prompt of the model where that is None."""
        if conversation_prompt is not None:
            return conversation_prompt
        return self.config.default_system_prompt(model or self.generations.upstream.known_model)

    def checked_prompt(self, text: str, files: Sequence[tuple[str, str]] = ()) -> str:
        """The text with normalized line ends, stripped; it may be empty where there are files.

        Raises RequestError, TooLarge.
        """
        prompt = text.replace("\r\n", "\n").strip()
        if not prompt and not files:
            raise RequestError("Write a message first.", field="prompt")
        limit = self.config.max_prompt_chars
        if len(prompt) > limit:
            raise TooLarge(f"The message is longer than {limit:,} characters.", field="prompt")
        return prompt

    def checked_files(self, owner: str, files: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
        """The files (hash, name) of a prompt, with names for display.

        Raises UnknownFile, RequestError and TooLarge.
        """
        check_limits(self.config, len(files), ())
        hashes = {file_hash for file_hash, _ in files}
        stored = self.store.files.many(owner, hashes)
        if len(stored) < len(hashes):
            raise UnknownFile(GONE)
        check_limits(self.config, len(files), stored.values())
        return [(file_hash, clean_name(name)) for file_hash, name in files]

    def checked_answer(self, text: str) -> str:
        """A user's version of an answer, with normalized line ends and no blank lines around it.

        Raises RequestError, TooLarge.
        """
        answer = _without_margins(text.replace("\r\n", "\n"))
        if not answer:
            raise RequestError("Write the answer's text first.", field="text")
        limit = self.config.max_answer_chars
        if len(answer) > limit:
            raise TooLarge(f"The answer is longer than {limit:,} characters.", field="text")
        return answer

    # --- use cases that start runs ----------------------------------------------------------------

    def send(
        self,
        conversation_id: str,
        owner: str,
        prompt: str,
        answers: Sequence[tuple[str, str]],
        *,
        edit_of: int | None = None,
        after: int | None = None,
        files: Sequence[tuple[str, str]] = (),
    ) -> Started:
        """Add a prompt and start its answers; with `edit_of`, as a new version of that prompt.

        `answers`: pairs of stream ID and model. `after`: the ID of the last prompt that the page
        shows, 0 where it shows none. `files`: the prompt's, checked. Raises what
        the store's `begin` and `GenerationService.start` raise (Moved: there are messages that the
        page does not show), TooManyRequests, ImagesNotRead, and UpstreamError if no model is set
        up.
        """
        self._check_start(len(answers))
        try:
            conversation = self._retry_while_busy(
                self.store.turns.add_prompt,
                conversation_id,
                owner,
                prompt,
                answers,
                worker=self.store_writer.worker,
                edit_of=edit_of,
                after=after,
                files=files,
            )
        except Busy:
            last = self.store.conversations.get(conversation_id, owner, limit=1).last
            if edit_of is None and after not in {None, last or 0}:
                raise Moved(MOVED) from None  # the running answer is not on the page
            raise
        return self._start_answers(conversation)

    def regenerate(
        self, conversation_id: str, owner: str, stream_id: str, model: str, prompt_id: int | None
    ) -> Started:
        """Start another answer to a prompt; to the last prompt where `prompt_id` is None.

        The prompt may be in the middle: the conversation then ends with the new answer.
        """
        self._check_start()
        conversation = self._retry_while_busy(
            self.store.turns.regenerate,
            conversation_id,
            owner,
            stream_id,
            model,
            worker=self.store_writer.worker,
            prompt_id=prompt_id,
        )
        return self._start_answers(conversation)

    def continue_answer(
        self, conversation_id: str, owner: str, prompt_id: int, stream_id: str
    ) -> Started:
        """Continue the last answer, which must be this prompt's, in the same message."""
        exchange = self._exchange(conversation_id, owner, prompt_id)
        if exchange.ended is None and self.wait_until_saved(conversation_id, owner):
            exchange = self._exchange(conversation_id, owner, prompt_id)
        answer_id = exchange.answer_id
        self._check_start()
        if is_unkept(exchange.answer, exchange.steps):  # new text must not join a picture's data
            self.pictures.look(owner, answer_id)
            self.pictures.wait(owner, answer_id, WRITE_WAIT)
        conversation = self._retry_while_busy(
            self.store.turns.continue_answer,
            conversation_id,
            owner,
            answer_id,
            stream_id,
            worker=self.store_writer.worker,
        )
        return self._start_answers(conversation)

    # --- use cases that start nothing -------------------------------------------------------------

    def discard(self, conversation_id: str, owner: str, prompt_id: int) -> Exchange:
        """Discard the last answer, which must be this prompt's; return the exchange as it was."""
        exchange = self._exchange(conversation_id, owner, prompt_id)
        self._retry_while_busy(self.store.turns.discard, conversation_id, owner, exchange.answer_id)
        return exchange

    def edit_answer(
        self, conversation_id: str, owner: str, prompt_id: int, stream_id: str, text: str
    ) -> Conversation:
        """Add a version of an answer to this prompt with a checked text of the user.

        `stream_id` names the answer. The text may have labels of `data_urls.labelled` for pictures.
        Raises Busy, UnknownConversation.
        """
        exchange = self._exchange(conversation_id, owner, prompt_id)
        versions = (*exchange.candidates, exchange.previous)
        for answer in versions:
            if answer is not None and answer.stream_id == stream_id:
                original = answer.shown_version().answer
                text = data_urls.restored(text, original)
                if text == _without_margins(original):
                    text = original  # adds no version
                return self._retry_while_busy(
                    self.store.turns.edit_answer, conversation_id, owner, answer.answer_id, text
                )
        raise UnknownConversation("This answer is no longer in the conversation. Reload the page.")

    def answer_with_pictures(
        self, owner: str, stream_id: str, message_id: int | None, timeout: float
    ) -> tuple[Exchange | None, bool]:
        """An answer that has ended, after its pictures are kept; None if it is not shown.

        False: that was not so within `timeout` seconds. `message_id`: of the answer, where it is
        known; there may be no generation with that ID.
        """
        until = now() + timeout
        self.store_writer.wait_written(StreamKey(owner, stream_id), timeout)
        place = self.store.pictures.place(owner, stream_id, message_id)
        if place is None:
            return None, True
        while (answer := self._answer(owner, *place)) is not None and answer.ended is None:
            if now() >= until:
                return None, False
            # Another worker has not saved its end yet; only the store tells when it has.
            threading.Event().wait(WRITE_TICK_MAX)
        if answer is None:
            return None, True
        shown_id = answer.shown_version().answer_id
        self.pictures.look(owner, shown_id)
        is_over = self.pictures.wait(owner, shown_id, max(0.0, until - now()))
        return self._answer(owner, *place), is_over

    def _answer(self, owner: str, conversation_id: str, answer_id: int) -> Exchange | None:
        """An answer; None if it is not shown."""
        with suppress(UnknownConversation):  # it was just deleted
            part = self.store.conversations.get(conversation_id, owner, around=answer_id, limit=1)
            for exchange in part.exchanges:
                for answer in exchange.candidates:
                    if answer.answer_id == answer_id:
                        return answer
        return None

    def show_version(self, conversation_id: str, owner: str, message_id: int) -> Conversation:
        """Switch to another version of a prompt or an answer; the conversation continues there."""
        return self._retry_while_busy(self.store.turns.show, conversation_id, owner, message_id)

    def select(self, conversation_id: str, owner: str, stream_id: str) -> Conversation:
        """Continue with one of several answers, and stop those that still run."""
        last = self.store.conversations.get(conversation_id, owner, limit=1).exchanges[-1:]
        candidates = last[0].candidates if last and last[0].alternatives else ()
        if any(answer.stream_id == stream_id for answer in candidates):
            running = [(answer.stream_id, None) for answer in candidates if answer.ended is None]
            self.generations.stop_many(running, owner)
        return self._retry_while_busy(self.store.turns.select, conversation_id, owner, stream_id)

    def usage(self, conversation_id: str, owner: str) -> Usage:
        """The token usage of all its answers. Raises UnknownConversation."""
        self.wait_until_saved(conversation_id, owner)
        return self.store.conversations.token_usage(conversation_id, owner)

    def find_generation(self, key: StreamKey) -> Generation | None:
        """The generation of a running answer, in any worker; None where it is unknown."""
        try:
            return self.generations.get(key)
        except UnknownStream:
            return None

    def wait_until_saved(self, conversation_id: str, owner: str) -> bool:
        """Wait until the ended ones of its last answers are saved, at most WRITE_WAIT for each.

        False: an answer still runs, or was not saved in that time.
        """
        last = self.store.conversations.get(conversation_id, owner, limit=1).exchanges[-1:]
        for answer in last[0].candidates if last else ():
            if answer.ended is None:
                key = StreamKey(owner, answer.stream_id)
                run = self.find_generation(key)
                if (
                    run is None
                    or run.log.ended is None
                    or not self.store_writer.wait_written(key, WRITE_WAIT)
                ):
                    return False
        return True

    # --- how runs start ---------------------------------------------------------------------------

    def _exchange(self, conversation_id: str, owner: str, prompt_id: int) -> Exchange:
        """The exchange of a prompt. Raises UnknownConversation."""
        conversation = self.store.conversations.get(
            conversation_id, owner, around=prompt_id, limit=1
        )
        for exchange in conversation.exchanges:
            if exchange.prompt_id == prompt_id:
                return exchange
        raise UnknownConversation("This message is no longer in the conversation. Reload the page.")

    def _check_start(self, answers: int = 1) -> None:
        """Check the limits of starts, and that there is a model, before the store is written to.

        Raises TooManyRequests, AtCapacity, Draining, UpstreamError.
        """
        self.count_starts(answers, hit=False)
        self.generations.require_places(answers)
        self.require_model()

    def _retry_while_busy(
        self,
        change: Callable[Concatenate[str, str, P], T],
        conversation_id: str,
        owner: str,
        *args: P.args,
        **more: P.kwargs,
    ) -> T:
        """Call `change`; retry it for WRITE_WAIT while it raises Busy.

        An answer that has just ended may not be saved yet, and the store is busy until it is.
        """
        try:
            return change(conversation_id, owner, *args, **more)
        except Busy:
            if not self.wait_until_saved(conversation_id, owner):  # one request to other workers
                raise
        # Answers of this worker are saved now. Only the store tells when those of others are.
        until, pause = now() + WRITE_WAIT, WRITE_TICK
        while True:
            try:
                return change(conversation_id, owner, *args, **more)
            except Busy:
                if now() >= until:
                    raise
            threading.Event().wait(pause)
            pause = min(2 * pause, WRITE_TICK_MAX)

    def _start_answers(self, conversation: Conversation) -> Started:
        """Start the answers to the conversation's last prompt: all of them or none."""
        candidates = conversation.exchanges[-1].candidates
        pending_answers = [answer for answer in candidates if answer.ended is None]
        runs: list[Run] = []
        try:
            self.count_starts(len(pending_answers))
            prompts = [self.system_prompt(answer.requested_model) for answer in pending_answers]
            path = self.store.conversations.prompt_path(conversation.id, conversation.owner)
            made: dict[Any, list[Message]] = {}  # most models get the same
            for answer, prompt in zip(pending_answers, prompts, strict=True):
                abilities = self.abilities(answer.requested_model) if path.has_files else UNKNOWN
                refused = path.images_refused_by(answer.requested_model)
                key = prompt, abilities.images, abilities.pdf, abilities.parts_bytes, refused
                if key not in made:
                    made[key] = messages_with_files(
                        self.config,
                        self.store.files,
                        conversation.owner,
                        path,
                        prompt,
                        abilities,
                        refused,
                    )
                messages = made[key]
                runs.append(self._start_answer(conversation, answer, messages))
        except Exception:
            owner = conversation.owner
            unstarted = [
                StreamKey(owner, answer.stream_id) for answer in pending_answers[len(runs) :]
            ]
            try:
                self.store.turns.cancel_start(conversation.id, unstarted[0])
            except StoreUnavailable:
                self.store_writer.interrupt(unstarted)
            self.generations.stop_many([(run.id, None) for run in runs], owner)
            raise
        return Started(conversation, runs[0])

    def _start_answer(
        self, conversation: Conversation, answer: Exchange, messages: list[Message]
    ) -> Run:
        """Start the run of one answer. Raises what `GenerationService.start` raises."""
        exchange, progress = conversation.exchanges[-1], self.answer_progress

        def saved(run: Run) -> bool:
            return self.store_writer.wait_written(run.key, WRITE_WAIT)

        def on_end(run: Run) -> None:
            end, tokens = run.log.ended, None
            if isinstance(end, Done) and end.finish_reason == "stop" and not run.prefix:
                tokens = end.metrics.tokens
            progress.end(run.key, answer.requested_model, tokens)
            self.pictures.on_end(run, answer.answer_id, lambda: saved(run))
            if answer is exchange and not conversation.has_earlier and not conversation.is_named:
                model_name = answer.requested_model or None
                text = run.answer()[1]
                self.titles.request(
                    conversation.id, exchange.prompt, text, model_name, conversation.owner
                )

        def on_usage(run: Run, usage: dict[str, Any]) -> None:
            if saved(run):
                self.store.generations.count(run.key, usage)

        key = StreamKey(conversation.owner, answer.stream_id)
        expected = None if answer.prefix else progress.begin(key, answer.requested_model)
        chat = ChatRequest(
            # The last message is the answer that is continued: `continuation_request` adds it.
            messages[:-1] if answer.prefix else messages,
            id=answer.stream_id,
            model=answer.requested_model or None,
            temperature=conversation.settings.temperature,
            top_p=conversation.settings.top_p,
            max_tokens=conversation.settings.max_tokens,
        )
        try:
            if answer.prefix:
                chat = continuation_request(chat, answer.prefix)
            run = self.generations.start(
                chat, conversation.owner, on_end, self.tools, on_usage=on_usage, noted=True
            )
        except Exception:
            progress.end(key, answer.requested_model)
            raise
        run.expected_tokens = expected
        return run


def _without_margins(text: str) -> str:
    """The text without white space at its end and blank lines at its start."""
    return text.rstrip().lstrip("\n")
