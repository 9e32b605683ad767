"""Finish reasons: each server's spelling becomes one word, and no failure counts as a good end."""

from __future__ import annotations

import pytest

from halt.core.events import Done
from halt.core.finish_reasons import ending, is_good, unusual_end_note
from halt.core.metrics import Meter
from halt.providers.finish_reasons import normalise_reason
from halt.web.api.openai import finish_reason


def reason_spellings(text: str) -> list[str]:
    return text.split()


STOP = reason_spellings("""stop STOP eos EOS eos_token EOS_TOKEN end_turn endTurn END_TURN stop_sequence STOP_SEQUENCE
stopSequence stop_sequence_reached stop_sequence_hit COMPLETE complete completed FINISH finished
endoftext end_of_text end_of_turn <|im_end|> </s> <|eot_id|> eosFound stopStringFound FinishReason.STOP
FINISH_REASON_STOP StopReason.END_TURN normal done success stop_token natural_stop stop-word
model_stop""")
LENGTH = reason_spellings("""length LENGTH Length max_tokens MAX_TOKENS maxTokens MaxTokens FinishReason.MAX_TOKENS
FINISH_REASON_MAX_TOKENS max_output_tokens model_length MODEL_LENGTH token_limit TOKEN_LIMIT max_length
model_context_window_exceeded maximum_tokens max_output maxPredictedTokensReached
contextLengthReached context_length_exceeded max_new_tokens limit stopped_limit truncated
output_limit_reached max_completion_tokens TRUNCATED""")
FILTER = reason_spellings("""content_filter CONTENT_FILTER content-filter contentFilter content_filtered SAFETY
FinishReason.SAFETY RECITATION PROHIBITED_CONTENT BLOCKLIST blacklist SPII IMAGE_SAFETY sensitive
guardrail_intervened guardrails refusal MODEL_ARMOR ERROR_TOXIC CONTENT_FILTERED safety_filter
moderation policy_violation blocked""")
CALLS = reason_spellings(
    "tool_calls TOOL_CALLS TOOL_CALL tool_call tool_use toolUse toolCalls tool-calls"
)
OWN = reason_spellings("""insufficient_system_resource abort aborted error ERROR network_error repetition
repetition_truncated pause_turn cancelled userStopped user_cancel time_limit rate_limit
token_rate_limit out_of_memory OTHER
LANGUAGE MALFORMED_FUNCTION_CALL UNEXPECTED_TOOL_CALL TOO_MANY_TOOL_CALLS malformed_model_output
timeout TIMEOUT ERROR modelUnloaded unload failed incomplete turn_limit interruption server_error
model_error eof preempted max_turns 停止""")


@pytest.mark.parametrize(
    ("reasons", "expected"),
    [(STOP, "stop"), (LENGTH, "length"), (FILTER, "content_filter"), (CALLS, "tool_calls")],
)
def test_normalise_reason_maps_each_spelling_to_one_word(reasons: list[str], expected: str) -> None:
    """Each spelling is mapped to one word: capitals, camel case and a type's name in front change
    nothing.
    """
    assert {reason: normalise_reason(reason) for reason in reasons} == dict.fromkeys(
        reasons, expected
    )


def test_normalise_reason_keeps_an_unknown_word_which_is_no_good_end() -> None:
    """An unknown word is kept for the user to read, and counts as a bad end."""
    assert {reason: normalise_reason(reason) for reason in OWN} == {
        reason: reason for reason in OWN
    }
    assert not any(is_good(reason) for reason in OWN)
    assert (
        unusual_end_note("abort")
        == ending("abort")
        == "The model's server ended the answer: abort."
    )


def test_normalise_reason_keeps_openais_words() -> None:
    """OpenAI's words stay, also the older one for calls, and have the right sentence."""
    for reason in ("stop", "length", "tool_calls", "function_call", "content_filter"):
        assert normalise_reason(reason) == reason
    assert not ending(None)
    assert not ending("stop")
    assert not ending("function_call")
    assert ending("length") == "Cut off at the token limit."
    assert not unusual_end_note("content_filter")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("null", None),
        ("None", None),
        ("", None),
        (" ", None),
        ("not_finished", None),
        ("FINISH_REASON_UNSPECIFIED", None),
        (None, None),
        (False, None),
        (True, "stop"),
        ({"reason": "endoftext"}, "stop"),
        ({"type": "max_tokens"}, "length"),
        ({}, None),
        (3, None),
        ("false", None),
        ([], None),
        ("!\x1b[31m<b>\nbad", "! [31m<b> bad"),
        ("broken " * 100, ("broken " * 100)[:100].strip()),
    ],
)
def test_normalise_reason_of_odd_values_is_harmless(value: object, expected: str | None) -> None:
    """Words for "not ended" are None; values that are no reason do no harm."""
    reason = normalise_reason(value)
    assert (reason.strip() if reason else reason) == expected


@pytest.mark.parametrize(
    ("reason", "called", "expected"),
    [
        ("stop", False, "stop"),
        (None, False, "stop"),
        (None, True, "tool_calls"),
        ("length", False, "length"),
        ("content_filter", False, "content_filter"),
        ("tool_calls", True, "tool_calls"),
        ("function_call", True, "tool_calls"),
        ("abort", False, "length"),
        ("network_error", True, "length"),
        ("pause_turn", False, "length"),
    ],
)
def test_openai_finish_reason_is_one_of_openais_words(
    reason: str | None, called: bool, expected: str
) -> None:
    """Clients of the OpenAI API get a finish reason that they know; a broken-off answer can be
    continued as one at the token limit."""
    terminal = Done(reason, Meter().snapshot())
    assert finish_reason(terminal, called=called, functions=False) == expected
