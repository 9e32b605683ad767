"""What people do in conversations: send, edit, regenerate, continue, discard, pick, show.

Each of them changes the store, and starts the runs that answer. Needs no request: its caller says
which session asks.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

from halt.chat.progress import AnswerProgress
from halt.chat.titles import Titles
from halt.clock import now
from halt.config.settings import Config
from halt.core.events import Done
from halt.core.generation import Generation
from halt.core.request import ChatRequest, Message
from halt.core.run import Run
from halt.core.service import GenerationService
from halt.core.tools import Toolbox
from halt.errors import RequestError, StoreUnavailable, TooLarge, UnknownStream
from halt.providers.continuation import continuation_request
from halt.store.models import MOVED, Busy, Conversation, Exchange, Moved, UnknownConversation, Usage
from halt.store.store import Store
from halt.store.writer import StoreWriter

#: Seconds that a request waits for an answer that has ended to be written down.
WRITE_WAIT = 2.0
WRITE_TICK = 0.01  # seconds before the first further look whether it is; each waits twice as long
WRITE_TICK_MAX = 0.16

P = ParamSpec("P")
T = TypeVar("T")


class Started(NamedTuple):
    """What a use case has started: the conversation with its last exchange alone, and the run."""

    conversation: Conversation
    run: Run  # of the first answer


@dataclass(frozen=True)
class ChatService:
    """The conversations of one application. Threads may share it."""

    config: Config
    generations: GenerationService
    store: Store
    store_writer: StoreWriter  # that of the generations
    titles: Titles
    tools: Toolbox  # that are offered to the models
    #: Called with a number of starts of the session that asks; with `hit=False` where they are only
    #: to be allowed. Raises TooManyRequests, RequestError.
    count_starts: Callable[..., None]
    answer_progress: AnswerProgress = field(default_factory=AnswerProgress)

    def system_prompt(self, model: str | None = "", own: str | None = None) -> str:
        """A conversation's `own` system prompt; where it has none, that of its model."""
        if own is not None:
            return own
        return self.config.told_system_prompt(model or self.generations.upstream.known_model)

    def checked_prompt(self, text: str) -> str:
        """The prompt that a person has written. Raises RequestError, TooLarge."""
        prompt = text.replace("\r\n", "\n").strip()
        if not prompt:
            raise RequestError("Write a message first.", field="prompt")
        most = self.config.max_prompt_chars
        if len(prompt) > most:
            raise TooLarge(f"The message is longer than {most:,} characters.", field="prompt")
        return prompt

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
    ) -> Started:
        """A new prompt; with `edit_of`, another version of one that is there.

        `answers` are the streams' IDs, each with its model. `after` is the last prompt that the
        page shows, 0 where it shows none. Raises what the store's `begin` and
        `GenerationService.start` raise (Moved: there are messages that the page does not show),
        and TooManyRequests.
        """
        self._check_capacity(len(answers))
        try:
            found = self._retry_while_busy(
                self.store.turns.add_prompt,
                conversation_id,
                owner,
                prompt,
                answers,
                worker=self.store_writer.worker,
                edit_of=edit_of,
                after=after,
            )
        except Busy:
            last = self.store.conversations.get(conversation_id, owner, limit=1).last
            if edit_of is None and after not in {None, last or 0}:
                raise Moved(MOVED) from None  # another answer than the one that the page shows
            raise
        return self._start_answers(found)

    def regenerate(
        self, conversation_id: str, owner: str, stream_id: str, model: str, prompt_id: int | None
    ) -> Started:
        """One more answer to a prompt, the last one where none is named.

        It may be in the middle: the conversation then ends with it.
        """
        self._check_capacity()
        found = self._retry_while_busy(
            self.store.turns.regenerate,
            conversation_id,
            owner,
            stream_id,
            model,
            worker=self.store_writer.worker,
            prompt_id=prompt_id,
        )
        return self._start_answers(found)

    def continue_answer(
        self, conversation_id: str, owner: str, prompt_id: int, stream_id: str
    ) -> Started:
        """Go on with the last answer, this prompt's, from its last word, in the same message."""
        answer_id = self._exchange(conversation_id, owner, prompt_id).answer_id
        self._check_capacity()
        found = self._retry_while_busy(
            self.store.turns.continue_answer,
            conversation_id,
            owner,
            answer_id,
            stream_id,
            worker=self.store_writer.worker,
        )
        return self._start_answers(found)

    # --- use cases that start nothing -------------------------------------------------------------

    def discard(self, conversation_id: str, owner: str, prompt_id: int) -> Exchange:
        """Take away the last answer, this prompt's; returns the exchange as it was."""
        gone = self._exchange(conversation_id, owner, prompt_id)
        self._retry_while_busy(self.store.turns.discard, conversation_id, owner, gone.answer_id)
        return gone

    def show_version(self, conversation_id: str, owner: str, message_id: int) -> Conversation:
        """Go to another version of a prompt or an answer: the conversation goes on from there."""
        return self._retry_while_busy(self.store.turns.show, conversation_id, owner, message_id)

    def select(self, conversation_id: str, owner: str, stream_id: str) -> Conversation:
        """Go on with one of several answers; those that are still being written are stopped."""
        last = self.store.conversations.get(conversation_id, owner, limit=1).exchanges[-1:]
        candidates = last[0].candidates if last and last[0].alternatives else ()
        if any(each.stream_id == stream_id for each in candidates):
            running = [(each.stream_id, None) for each in candidates if each.ended is None]
            self.generations.stop_each(running, owner)
        return self._retry_while_busy(self.store.turns.select, conversation_id, owner, stream_id)

    def usage(self, conversation_id: str, owner: str) -> Usage:
        """The tokens of all that was answered in it. Raises UnknownConversation."""
        self.wait_until_saved(conversation_id, owner)
        return self.store.conversations.token_usage(conversation_id, owner)

    def find_generation(self, stream_id: str, owner: str | None) -> Generation | None:
        """The generation of an answer that runs, in any worker; None: it is not known."""
        try:
            return self.generations.get(stream_id, owner)
        except UnknownStream:
            return None

    def wait_until_saved(self, conversation_id: str, owner: str) -> bool:
        """Wait until what has ended in it is written down. False: an answer is being written."""
        last = self.store.conversations.get(conversation_id, owner, limit=1).exchanges[-1:]
        for each in last[0].candidates if last else ():
            if each.ended is None:
                run = self.find_generation(each.stream_id, owner)
                if (
                    run is None
                    or run.log.ended is None
                    or not self.store_writer.wait_written(each.stream_id, WRITE_WAIT)
                ):
                    return False
        return True

    # --- how runs start ---------------------------------------------------------------------------

    def _exchange(self, conversation_id: str, owner: str, prompt_id: int) -> Exchange:
        """The exchange at which a button was pressed. Raises UnknownConversation."""
        found = self.store.conversations.get(conversation_id, owner, around=prompt_id, limit=1)
        for each in found.exchanges:
            if each.prompt_id == prompt_id:
                return each
        raise UnknownConversation(
            "This is not a part of the conversation any more. Load the page anew."
        )

    def _check_capacity(self, answers: int = 1) -> None:
        """Refuse what would be refused at its start, before the store is written to.

        Raises TooManyRequests, AtCapacity, Draining.
        """
        self.count_starts(answers, hit=False)
        self.generations.expect_room(answers)

    def _retry_while_busy(
        self,
        change: Callable[Concatenate[str, str, P], T],
        conversation_id: str,
        owner: str,
        *args: P.args,
        **more: P.kwargs,
    ) -> T:
        """Change the conversation. An answer that has just ended may have to be written first."""
        try:
            return change(conversation_id, owner, *args, **more)
        except Busy:
            if not self.wait_until_saved(conversation_id, owner):  # asks the other workers, once
                raise
        # What ended here is written. What ended in another worker is announced by the store alone.
        until, pause = now() + WRITE_WAIT, WRITE_TICK
        while True:
            try:
                return change(conversation_id, owner, *args, **more)
            except Busy:
                if now() >= until:
                    raise
            threading.Event().wait(pause)
            pause = min(2 * pause, WRITE_TICK_MAX)

    def _start_answers(self, found: Conversation) -> Started:
        """Start what answers the conversation's last prompt: all of it or nothing."""
        waiting = [each for each in found.exchanges[-1].candidates if each.ended is None]
        runs: list[Run] = []
        try:
            self.count_starts(len(waiting))
            prompts = [self.system_prompt(each.requested_model) for each in waiting]
            messages = {
                prompt: self.store.conversations.prompt_messages(found.id, found.owner, prompt)
                for prompt in set(prompts)
            }
            for each, prompt in zip(waiting, prompts, strict=True):
                runs.append(self._start_answer(found, each, messages[prompt]))
        except Exception:
            idle = [each.stream_id for each in waiting[len(runs) :]]
            try:
                self.store.turns.cancel_start(found.id, idle[0])
            except StoreUnavailable:
                self.store_writer.interrupt(idle)
            self.generations.stop_each([(run.id, None) for run in runs], found.owner)
            raise
        return Started(found, runs[0])

    def _start_answer(self, found: Conversation, wanted: Exchange, messages: list[Message]) -> Run:
        """Start the run of one answer."""
        exchange, progress = found.exchanges[-1], self.answer_progress

        def ended(run: Run) -> None:
            end, tokens = run.log.ended, None
            if isinstance(end, Done) and end.finish_reason == "stop" and not run.prefix:
                tokens = end.metrics.tokens
            progress.end(run.id, wanted.requested_model, tokens)
            if wanted is exchange and not found.has_earlier and not found.named:
                answer = run.answer()[1]
                self.titles.request(
                    found.id, exchange.prompt, answer, wanted.requested_model or None
                )

        def counted(run: Run, usage: dict[str, Any]) -> None:
            if self.store_writer.wait_written(run.id, WRITE_WAIT):
                self.store.generations.count(run.id, usage)

        expected = (
            None if wanted.prefix else progress.begin(wanted.stream_id, wanted.requested_model)
        )
        chat = ChatRequest(
            messages[:-1] if wanted.prefix else messages,  # the last one is what it goes on from
            id=wanted.stream_id,
            model=wanted.requested_model or None,
            temperature=found.settings.temperature,
            max_tokens=found.settings.max_tokens,
        )
        try:
            if wanted.prefix:
                chat = continuation_request(chat, wanted.prefix)
            run = self.generations.start(
                chat, found.owner, ended, self.tools, on_usage=counted, noted=True
            )
        except Exception:
            progress.end(wanted.stream_id, wanted.requested_model)
            raise
        run.expected = expected
        return run
