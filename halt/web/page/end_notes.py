"""The note below an answer that did not end plainly: what happened, and what to do next."""

from __future__ import annotations

from dataclasses import dataclass, replace

from halt.chat.figures import tokens_text, unwatched_text
from halt.core.events import Cancelled, Done, ErrorInfo, Failed, Terminal
from halt.core.finish_reasons import CONTENT_FILTER, CUT_OFF, EMPTY, LENGTH, unusual_end_note
from halt.core.receipts import Receipt
from halt.core.request_ids import quoted
from halt.errors import CODES, IT_SAID, QUOTE_MAX, shortened

#: Errors of Halt's limits. The text before such an error is shown as a stopped answer.
LIMITS = frozenset({"run_too_long", "answer_too_long"})

KEPT = "Everything above is saved."
NOTHING = "Nothing was generated."
_OTHER = "Try again, or choose another model."
#: Ends of remedies for which the note has a button that opens the list of models.
_CHOICES = ("another model.", "a model that reads more.", "a model of another provider.")

#: What to do about an error, where its sentence in CODES does not say so.
_REMEDIES = {
    "upstream_refused": "Start it, then try again.",
    "upstream_tls": "Install the certificate, or correct the address.",
    "upstream_connect_timeout": _OTHER,
    "upstream_unreachable": "Check the network and the address, then try again.",
    "bad_request": "Change the message or the settings, or choose another model.",
    "images_refused": "This model reads no images. Choose another model.",
    "context_too_long": "Start a new chat, or choose a model that reads more.",
    "unauthorized": "Correct the key, or choose another model.",
    "key_needed": "Its field is on the page “Models”. Or choose another model.",
    "address_refused": "Correct the address, or choose another model.",
    "forbidden": "Use a key that has it, or choose another model.",
    "region_not_supported": "Choose a model of another provider.",
    "content_filter": "Word the message differently, or choose another model.",
    "quota_exceeded": "Add credit at the provider, or choose another model.",
    "model_not_found": "Choose another model.",
    "upstream_server_error": _OTHER,
    "upstream_dropped": "Try again.",
    "upstream_incomplete": "Try again.",
    "upstream_invalid": _OTHER,
    "upstream_error": _OTHER,
    "first_byte_timeout": _OTHER,
    "stalled": _OTHER,
}
#: Codes of servers that have not refused the request, and the words before their own ones.
_REPORTS = {
    "upstream_server_error": "The model's server reported an error",
    "upstream_error": "The model's server reported an error",
    "upstream_incomplete": "The model's server ended the answer early",
    "upstream_web_page": "The model's server sent a web page",
    "model_loading": "The model's server is not ready",
    "rate_limited": "The model's server asks to wait",
}
#: Sentences that say no more than the title before the server's words.
_PLAIN = frozenset(CODES[code][0] for code in ("bad_request", "images_refused", "upstream_error"))


@dataclass(frozen=True)
class NoteView:
    """The data of a note. Only `title` is always there."""

    kind: str  # stopped, limit, cut, interrupted, fault, lost
    title: str
    words: str = ""  # the model server's own, in quotation marks after the title
    all_words: str = ""  # the same without a limit, where `words` is cut
    text: str = ""  # what else is known, and what to do next
    facts: tuple[str, ...] = ()  # code, HTTP status
    request_id: str = ""
    opens: str = ""  # what its second button opens: "models", "settings"; "" for none


LOST = NoteView(
    "lost", "This answer was lost. The server no longer has it.", text="Write it again."
)


def end_note(
    ended: Terminal, tokens: int, *, has_text: bool, receipt: Receipt | None = None
) -> NoteView | None:
    """The note for this end, None for a plain one.

    `tokens`: of the answer, 0 where they are unknown. `receipt`: of the Stop that ended it.
    """
    if isinstance(ended, Failed):
        return _error_note(ended.error, tokens, has_text=has_text)
    if isinstance(ended, Cancelled):
        if ended.reason == "stop":
            when = _after(tokens) or ("" if has_text else " before any text")
            kept = KEPT if has_text or tokens else ""
            text = f"{_connection_text(receipt)}{kept}".rstrip()
            return NoteView("stopped", f"Stopped by you{when}.", text=text)
        return NoteView("stopped", unwatched_text(ended), text=KEPT)
    return _finish_note(ended)


def _finish_note(ended: Done) -> NoteView | None:
    reason = ended.finish_reason
    if title := CUT_OFF.get(reason or ""):
        texts = {
            LENGTH: "Continue lets the model write on. The limit is the model's or one of this "
            "chat's settings.",
            CONTENT_FILTER: "Word the message differently, or choose another model.",
        }
        opens = "settings" if reason == LENGTH else "models"
        return NoteView("cut", f"{title}.", text=texts[reason or ""], opens=opens)
    if title := unusual_end_note(reason):
        return NoteView("fault", title, text=_OTHER, opens="models")
    return None


def empty_note() -> NoteView:
    """The note for an answer without text, thoughts and calls that ended plainly."""
    return NoteView("fault", EMPTY, text=_OTHER, opens="models")


def _after(tokens: int) -> str:
    return f" after {tokens_text(tokens)}" if tokens else ""


def _connection_text(receipt: Receipt | None) -> str:
    if receipt is None or receipt.status != "stopped":
        return ""
    if receipt.upstream == "closed":
        return f"The connection to the model was closed in {receipt.elapsed_ms:.0f}\u00a0ms. "
    if receipt.upstream == "closing":
        return "The connection to the model is not closed yet. "
    return "No connection to the model was open. "


def _error_note(error: ErrorInfo, tokens: int, *, has_text: bool) -> NoteView:
    if error.code == "interrupted":
        text = KEPT if has_text else "Nothing of it was kept."
        return NoteView("interrupted", "Interrupted: Halt shut down or crashed.", text=text)
    if error.code in LIMITS and has_text:
        return NoteView(
            "limit", f"Stopped at a limit{_after(tokens)}.", text=f"{error.message} {KEPT}"
        )
    sentence, _, rest = error.message.partition(IT_SAID)
    words = error.detail or rest  # `rest`: of events of earlier versions
    if error.hint:
        sentence = sentence.removesuffix(error.hint).rstrip()
    sentence = sentence.removesuffix(quoted(error.request_id))
    remedy = _REMEDIES.get(error.code, "")
    if remedy.startswith("Try again") and (has_text or "again in" in sentence):
        remedy = ""  # the sentence says when, or the note offers to continue
    texts = [error.hint or remedy, KEPT if has_text else NOTHING]
    note = NoteView(
        "fault",
        sentence,
        text=" ".join(filter(None, texts)),
        facts=_facts(error),
        request_id=error.request_id or "",
        opens="models" if remedy.endswith(_CHOICES) else "",
    )
    if not words:
        return note
    title = _REPORTS.get(error.code, "The model's server refused")
    text = note.text if sentence in _PLAIN else f"{sentence} {note.text}"
    cut_words = shortened(words, QUOTE_MAX)
    return replace(
        note,
        title=f"{title}:",
        words=cut_words,
        all_words=words if cut_words != words else "",
        text=text,
    )


def _facts(error: ErrorInfo) -> tuple[str, ...]:
    status = error.upstream_status or error.status
    return (
        f"Code: {error.code}",
        *([f"HTTP {status}"] if status else []),
    )
