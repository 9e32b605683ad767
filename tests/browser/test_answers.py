"""Answers: their Markdown, their figures, their safety, and the buttons under them."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import expect

from halt.testing.scenarios import SCENARIOS
from halt.testing.wire import Reply
from tests.browser.chat import LOAD_ERRORS, Chat, numbers

PARAGRAPHS = "\n\n".join(f"Paragraph {n} with a few plain words in it." for n in range(60))

#: Markup that would run a script, load a resource or leave its element.
HOSTILE = """
<script>alert("script")</script> <img src=x onerror=alert("image")>
<svg onload=alert("svg")><style>body{display:none}</style></svg>
<iframe src="https://evil.example/"></iframe> <object data="https://evil.example/x"></object>

<div hx-get="/healthz" hx-trigger="load">htmx</div> <div hx-on:load="alert('hx-on')">on</div>
<hx-partial hx-target="#messages" hx-swap="innerHTML">taken over</hx-partial>
<meta http-equiv="refresh" content="0;url=https://evil.example/"><base href="https://evil.example/">

[a](javascript:alert(1)) [b](JaVaScRiPt:alert(2)) [c](data:text/html,<script>alert(3)</script>)
[d](vbscript:alert(4)) ![image](https://evil.example/pixel.png) ![x](x"onerror="alert(5))
<https://ok.example/"onmouseover="alert(6)> <a href="javascript:alert(7)" autofocus onfocus=alert(8)>

```js"><img/src=x/onerror=alert(9)>
</code></pre><script>alert(10)</script>
```

| <img src=x onerror=alert(11)> | b |
|---|---|
| </td></table><script>alert(12)</script> | `<script>alert(13)</script>` |

</template></article><form action="https://evil.example/"><input name=prompt><button>Send</button>
&lt;script&gt;alert(14)&lt;/script&gt; </hx-partial></div><!-- <b>comment

The end.
"""


@pytest.fixture
def silent_second_time(monkeypatch: pytest.MonkeyPatch) -> str:
    """A model that answers its first request, and is silent at the second."""

    def once(reply: Reply, key: str = "") -> None:
        if reply.failures(key) == 1:
            SCENARIOS["count"](reply, 3)
        else:
            SCENARIOS["silent_first_token"](reply)

    monkeypatch.setitem(SCENARIOS, "once", once)
    return "once?key=x"


def test_answer_is_shown_as_rendered_markdown(chat: Chat) -> None:
    """An answer shows headings, nested lists, a table, highlighted code, quotes and links."""
    chat.ask("markdown?gap_ms=1")
    chat.wait_state("done")
    text = chat.text
    expect(text.locator("h1")).to_have_text("A fixed answer")
    expect(text.locator("strong")).to_have_text("bold")
    expect(text.locator("ul > li ul ol > li")).to_have_text(["deeper", "still"])
    expect(text.locator("table th")).to_have_text(["name", "value"])
    expect(text.locator("table td")).to_have_text(["left", "1", "right", "22"])
    code = text.locator(".code pre code")
    expect(code).to_contain_text('return f"<b>Hello</b>, {name} & all"')
    assert code.locator("span").count() > 3, "no highlighting"
    expect(text.locator("blockquote")).to_contain_text('<script>alert("script")</script>')
    link = text.get_by_role("link", name="link", exact=True)
    expect(link).to_have_attribute("href", "https://example.org/?a=1&b=2")
    assert "noopener" in (link.get_attribute("rel") or "")


def test_answer_blocks_take_the_direction_of_their_script(chat: Chat) -> None:
    """A list or quote in a right-to-left script runs right to left, as does an unfinished line."""
    chat.ask_for("- \u05d0\u05d1\n- \u05d2\n\n- left\n\n> \u05d3\n\nleft\n\n1. left\n\n\u05d4")
    chat.wait_state("done")
    direction = "element => getComputedStyle(element).direction"
    first = chat.answer.locator(".text > div").first
    for tag, expected in (("ul", "rtl"), ("blockquote", "rtl"), ("ol", "ltr")):
        assert first.locator(tag).first.evaluate(direction) == expected
    chat.ask("stall?n=1")
    tail = chat.answer.locator(".tail")
    assert tail.evaluate("element => getComputedStyle(element).unicodeBidi") == "plaintext"
    chat.stop.click()


def test_footnote_and_its_reference_are_reached_by_keyboard(chat: Chat) -> None:
    """A reference leads to its note, which is marked; the back link leads to the reference."""
    filler = "\n\nword" * 60
    chat.ask_for(
        f"- [x] a[^1]{filler}\n\n[^1]: the note\n\n<details>\n<summary>T</summary>\n\nb\n\n</details>"
    )
    chat.wait_state("done")
    text = chat.text
    expect(text.get_by_role("checkbox", name="Done")).to_be_checked()
    expect(text.get_by_text("b", exact=True)).to_be_hidden()
    text.locator("summary").press("Enter")
    expect(text.get_by_text("b", exact=True)).to_be_visible()
    reference = text.locator("sup a")
    reference.press("Enter")
    note = text.get_by_text("the note")
    expect(note).to_be_in_viewport()
    expect(text.locator("li:target")).to_have_text(re.compile("the note"))
    text.get_by_role("link", name="Back to the text").press("Enter")
    expect(reference).to_be_in_viewport()
    expect(text.locator("a:target")).to_have_text("1")


def test_footnotes_of_equal_answers_lead_to_their_own_notes(chat: Chat) -> None:
    """A reference leads to the note of its answer, also below an answer with the same text."""
    for count in (1, 2):
        chat.ask_for("a[^1]\n\n[^1]: the note")
        expect(chat.page.locator(".exchange")).to_have_count(count)
        chat.wait_state("done")
    chat.text.locator("sup a").press("Enter")
    expect(chat.text.locator("li:target")).to_have_text(re.compile("the note"))


def test_footnote_of_an_earlier_answer_stays_in_view_while_text_comes(chat: Chat) -> None:
    """A reader who goes to a footnote is not moved from there to the end of a running answer."""
    chat.ask_for("a[^1]\n\n[^1]: the note")
    chat.wait_state("done")
    chat.ask("count?n=4000&hold=9")
    chat.wait_text("7 8")
    chat.page.locator(".exchange:first-child sup a").press("Enter")
    expect(chat.page.locator("li:target")).to_be_in_viewport()
    chat.release()
    chat.wait_state("done")
    chat.frames()
    expect(chat.page.locator("li:target")).to_be_in_viewport()


def test_copy_button_of_code_copies_the_code_alone(chat: Chat) -> None:
    """The Copy button of a code block puts the code, and nothing around it, on the clipboard."""
    chat.context.grant_permissions(["clipboard-read", "clipboard-write"])
    chat.ask("markdown")
    chat.wait_state("done")
    button = chat.text.locator(".code .copy")
    expect(button).to_have_accessible_name("Copy")
    button.click()
    expect(button).to_have_text("Copied")
    assert chat.page.evaluate("navigator.clipboard.readText()") == (
        'def greet(name: str) -> str:\n    return f"<b>Hello</b>, {name} & all"  # stays text\n'
    )
    expect(button).to_have_text("Copy")


@pytest.mark.parametrize(
    "piece", [1, 7, 5000], ids=["1 character", "7 characters", "5000 characters"]
)
def test_hostile_answer_runs_no_script_and_loads_nothing(chat: Chat, piece: int) -> None:
    """An answer adds no script, dialog, request or active element: running, done or reloaded."""
    chat.ask_for(HOSTILE, piece=piece)
    chat.wait_state("done")
    chat.wait_text("The end.")
    for _ in range(2):
        forbidden = chat.page.locator(
            "#messages :is(script, iframe, object, embed, img, svg:not(.icon), style, form, input, meta, base,"
            " link, hx-partial, [hx-get]:not(.feed), [style])"
        )
        assert forbidden.count() == 0, forbidden.first.evaluate("e => e.outerHTML")
        attributes = chat.page.evaluate(
            """() => [...document.querySelectorAll('#messages .text *')].flatMap(
              e => e.getAttributeNames().filter(n => n.startsWith('on') || n.startsWith('hx-')))"""
        )
        assert attributes == []
        targets = chat.page.evaluate(
            "() => [...document.querySelectorAll('#messages .text a')].map(a => a.protocol)"
        )
        assert set(targets) <= {"https:", "http:", "mailto:"}
        assert chat.exchange_count() == 1
        expect(chat.send).to_be_visible()
        chat.reload()
        chat.wait_text("The end.")


def test_hostile_prompt_is_shown_as_text(chat: Chat) -> None:
    """A prompt with HTML is shown as text, also after a reload."""
    prompt = "/fake count?n=2 <img src=x onerror=alert(1)> <b>bold</b> </textarea><script>alert(2)"
    chat.submit(prompt)
    chat.wait_state("done")
    for _ in range(2):
        expect(chat.page.locator(".prompt .text")).to_have_text(prompt)
        assert chat.page.locator("#messages :is(img, b, script)").count() == 0
        chat.reload()


def test_running_answer_draws_each_block_once_and_text_only_grows(chat: Chat) -> None:
    """While an answer runs, its finished blocks stay the same elements and its text only grows."""
    chat.page.evaluate(
        """() => {
          window.seen = { faults: [], blocks: [], text: '', frames: 0 };
          const look = () => {
            const answer = document.querySelector('.answer[data-state="running"]');
            if (answer) {
              const text = answer.querySelector('.text').textContent.replace(/\\s+/g, ' ').trim();
              const blocks = [...answer.querySelector('.text > div').children];
              if (!text.startsWith(seen.text)) seen.faults.push([seen.text.length, text.length]);
              seen.blocks.forEach((block, i) => {
                if (block !== blocks[i]) seen.faults.push(`block ${i} was drawn again`);
              });
              Object.assign(seen, { text, blocks, frames: seen.frames + 1 });
            }
            requestAnimationFrame(look);
          };
          look();
        }"""
    )
    last_pieces = (len(PARAGRAPHS) - 40) // 4  # within the last paragraph
    chat.ask_for(PARAGRAPHS, piece=4, gap_ms=2, hold=last_pieces)
    chat.wait_text("Paragraph 58")
    chat.frames(3)
    chat.release()
    chat.wait_text("Paragraph 59")
    chat.wait_state("done")
    records = chat.page.evaluate("({ ...seen, blocks: seen.blocks.length })")
    assert records["faults"] == []
    assert records["blocks"] > 20
    assert records["frames"] > 2, "it did not stream"


def test_stream_carries_each_paragraph_once(chat: Chat) -> None:
    """A stream carries each paragraph once, however long the answer has become."""
    session = chat.context.new_cdp_session(chat.page)
    session.send("Network.enable")
    received = {"bytes": 0}
    session.on(
        "Network.dataReceived",
        lambda event: received.update(bytes=received["bytes"] + int(event["dataLength"])),
    )
    text = "\n\n".join(f"Paragraph {n} with a few plain words in it." for n in range(300))
    chat.ask_for(text, piece=40, gap_ms=3)
    chat.wait_state("done")
    chat.frames()
    # Each character once while it streams and once in the whole that replaces it, twice (source);
    # sending the whole answer with each piece would be a hundred times as much.
    assert received["bytes"] < 12 * len(text)


def test_figures_show_timing_tokens_finish_reason_and_model(chat: Chat) -> None:
    """Figures: time to first token, tokens a second, tokens, duration, how it ended, model."""
    chat.ask("stall?n=15&rest=15")
    chat.wait_text("13 14")
    chat.record().release()
    chat.wait_state("done")
    figures = chat.answer.locator(".figures")
    expect(figures).to_contain_text(re.compile(r"First token after \d"))
    expect(figures).to_contain_text(re.compile(r"Speed \d+ tokens/s"))
    expect(figures).to_contain_text("30 tokens")
    expect(figures).to_contain_text(re.compile(r"In all \d"))
    expect(figures).to_contain_text("Ended by the model")
    expect(figures).to_contain_text("Model echo")
    expect(figures).not_to_contain_text("estimated")


@pytest.mark.parametrize("way", ["Escape", "click"])
def test_figures_close_by_escape_and_by_a_click_elsewhere(chat: Chat, way: str) -> None:
    """The open figures are closed; Esc does not reach the answer that runs below."""
    chat.ask("count?n=3")
    chat.wait_state("done")
    summary = chat.answer.locator(".figures > summary")
    summary.click()
    figures = chat.page.locator(".figures > dl")
    expect(figures).to_be_visible()
    if way == "Escape":
        chat.ask("stall?n=5")
        chat.wait_text("3 4")
        chat.page.keyboard.press("Escape")
    else:
        chat.answer.locator("> .text").click()
    expect(figures).to_be_hidden()
    if way == "Escape":
        expect(chat.answer).to_have_attribute("data-state", "running")


def test_long_prompt_shows_its_first_lines_until_it_is_asked_for_all(chat: Chat) -> None:
    """A long prompt is cut on the page alone: its text is whole, also for the clipboard."""
    words = "\n".join(f"line {n}" for n in range(60))
    chat.ask("count?n=3", words)
    chat.wait_state("done")
    text = chat.page.locator(".prompt > .text")
    expect(text).to_contain_text("line 59")
    height = "e => e.offsetHeight / parseFloat(getComputedStyle(e).lineHeight)"
    assert text.evaluate(height) < 14
    chat.page.get_by_label("Show all").check()
    assert text.evaluate(height) > 60


def test_figures_without_reported_usage_are_marked_estimated(chat: Chat) -> None:
    """A token count that the provider did not report is marked as estimated."""
    chat.ask("no_usage?n=7")
    chat.wait_state("done")
    expect(chat.answer.locator(".figures")).to_contain_text("about 7 tokens, estimated")


def test_answer_cut_off_at_the_token_limit_is_labelled(chat: Chat) -> None:
    """An answer with the finish reason "length" is labelled as cut off at the token limit."""
    chat.ask("length?n=5")
    chat.wait_state("done")
    expect(chat.answer).to_contain_text("Cut off at the token limit")
    expect(chat.answer.locator(".figures")).to_contain_text("Ended at the token limit")


def test_copy_button_of_answer_copies_the_markdown_source(chat: Chat) -> None:
    """The Copy button of an answer copies its Markdown source, also after a reload."""
    chat.context.grant_permissions(["clipboard-read", "clipboard-write"])
    source = "# Title\n\n- **bold** & <b>not bold</b>\n\n```\n</template>code\n```\n"
    chat.ask_for(source)
    chat.wait_state("done")
    for _ in range(2):
        chat.answer.locator("footer").get_by_role("button", name="Copy").click()
        expect(chat.page.locator("#announcer")).to_have_text("Copied")
        assert chat.page.evaluate("navigator.clipboard.readText()") == source
        chat.page.evaluate("navigator.clipboard.writeText('')")
        chat.reload()


def test_regenerate_sends_the_same_prompt_and_shows_the_new_answer(chat: Chat) -> None:
    """ "Write again" sends the same messages again, and only the new answer is shown."""
    chat.ask("count?n=3")
    chat.wait_state("done")
    first = chat.answer.get_attribute("data-stream")
    chat.button("Write again").click()
    chat.record(1)
    expect(chat.answer).not_to_have_attribute("data-stream", first or "")
    chat.wait_state("done")
    assert (chat.exchange_count(), chat.answer_text()) == (1, "0 1 2")
    assert chat.record(0).body["messages"] == chat.record(1).body["messages"]
    chat.reload()
    assert (chat.exchange_count(), chat.answer_text()) == (1, "0 1 2")


def test_prompt_after_regenerate_is_sent(chat: Chat) -> None:
    """After an answer was written again, Send is visible and the next prompt gets its answer."""
    chat.ask("count?n=2")
    chat.wait_state("done")
    chat.button("Write again").click()
    chat.record(1)
    chat.wait_state("done")
    expect(chat.send).to_be_visible()
    chat.ask("count?n=3")
    chat.wait_text("0 1 2")
    assert chat.exchange_count() == 2


def test_regenerate_stopped_before_any_text_restores_the_earlier_answer(
    chat: Chat, silent_second_time: str
) -> None:
    """A regeneration that is stopped before any text leaves the earlier answer as it was."""
    chat.ask(silent_second_time)
    chat.wait_state("done")
    chat.button("Write again").click()
    chat.wait_state("running")
    chat.record(1)
    chat.stop.click()
    chat.wait_state("done")
    assert (chat.exchange_count(), chat.answer_text()) == (1, "0 1 2")
    expect(chat.prompt).to_have_value("")
    chat.reload()
    assert (chat.exchange_count(), chat.answer_text()) == (1, "0 1 2")


def test_new_chat_is_empty_and_the_old_one_keeps_its_address(chat: Chat) -> None:
    """A new chat sends no earlier message, and the first chat stays at its address."""
    chat.ask("count?n=4")
    chat.wait_state("done")
    address = chat.page.url
    assert "/c/" in address
    chat.page.get_by_role("link", name="New chat").click()
    expect(chat.page.locator(".exchange")).to_have_count(0)
    chat.ask("count?n=2")
    chat.wait_state("done")
    assert len([m for m in chat.record().body["messages"] if m["role"] == "user"]) == 1
    assert chat.page.url != address
    chat.page.goto(address)
    assert (chat.exchange_count(), chat.answer_text()) == (1, "0 1 2 3")


def test_request_holds_stopped_answer_as_shown_and_marks_it(chat: Chat) -> None:
    """A request holds prompts and answers as shown; a stopped answer is marked as stopped."""
    first = chat.ask("count?n=3")
    chat.wait_state("done")
    second = chat.ask("count?n=1000000&gap_ms=5")
    chat.wait_text("10 11 12")
    chat.prompt.press("Escape")
    chat.wait_state("stopped")
    visible_text = chat.answer_text()
    third = chat.ask("count?n=1")
    chat.wait_state("done")
    sent_messages = chat.record().body["messages"]
    assert [m["role"] for m in sent_messages] == ["user", "assistant"] * 2 + ["user"]
    assert [sent_messages[i]["content"] for i in (0, 2)] == [first, second]
    assert sent_messages[1]["content"].strip() == "0 1 2"
    assert sent_messages[3]["content"].strip() == visible_text
    note, _, prompt = sent_messages[4]["content"].partition("\n\n")
    assert "stopped" in note
    assert prompt == third


def test_conversation_of_another_session_is_not_found(
    chat: Chat, open_chat: Callable[..., Chat]
) -> None:
    """The address of a conversation gives another session a 404 without its text."""
    chat.ask("count?n=4")
    chat.wait_state("done")
    other_chat = open_chat(chat.server, chat.fake)
    other_chat.allowed_problems = "404"
    response = other_chat.page.goto(chat.page.url)
    assert response is not None
    assert response.status == 404
    assert "0 1 2 3" not in other_chat.page.content()


def test_page_works_with_all_other_hosts_blocked(chat: Chat) -> None:
    """The page loads everything that it needs from its own server."""
    chat.context.route(lambda url: not url.startswith(chat.server.url), lambda route: route.abort())
    chat.reload()
    chat.ask("markdown")
    chat.wait_state("done")
    assert chat.page.evaluate("typeof htmx") == "object"


def test_style_sheet_that_did_not_load_is_loaded_later(chat: Chat) -> None:
    """A sheet that was lost with the connection leaves nothing behind, and is asked for again."""
    chat.allowed_problems = LOAD_ERRORS
    chat.page.route("**/css/formats*.css", lambda route: route.abort())
    with chat.page.expect_event("requestfailed", lambda request: "formats" in request.url):
        chat.ask("count?n=4")
    chat.wait_state("done")
    chat.page.unroute("**/css/formats*.css")
    chat.ask("count?n=4")
    expect(chat.page.locator('link[href*="formats"]')).to_have_count(1)
    chat.wait_style("formats")


def test_long_answer_arrives_whole_and_in_order(chat: Chat) -> None:
    """Of 5,000 fast tokens none is lost or repeated, and their order stays."""
    chat.ask("count?n=5000&burst=20")
    chat.wait_state("done")
    assert chat.answer_text() == numbers(5000)
