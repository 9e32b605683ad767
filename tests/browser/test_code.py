"""The buttons of code blocks: Wrap, Download, and Copy by its shortcut."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Locator, expect

from tests.browser.chat import Chat

LONG_LINE = "x = [" + "1, " * 300 + "]"
CODE = f"""\
```python title="../src/caf\u00e9 <b>.py"
short = 1
```

```python title="../src/caf\u00e9.py"
{LONG_LINE}
text = "\u2713 &amp; <b>"
```

```sh
ls
```
"""


def button(block: Locator, name: str) -> Locator:
    """A visible button of a code block."""
    return block.get_by_role("button", name=name)


def test_wrap_holds_for_all_code_and_is_remembered(chat: Chat) -> None:
    """Wrap appears where a line is too long, wraps the lines of all code, and stays on."""
    chat.ask_for(CODE)
    chat.wait_state("done")
    blocks = chat.text.locator(".code")
    code = blocks.nth(1).locator("pre")
    wrap, is_wide = button(blocks.nth(1), "Wrap"), "pre => pre.scrollWidth > pre.clientWidth"
    expect(button(blocks.nth(0), "Copy")).to_be_visible()
    expect(button(blocks.nth(0), "Wrap")).to_have_count(0)
    expect(wrap).to_have_attribute("aria-pressed", "false")
    assert code.evaluate(is_wide)
    expect(code).to_have_attribute("tabindex", "0")
    wrap.press("Enter")
    expect(wrap).to_have_attribute("aria-pressed", "true")
    expect(wrap).to_be_focused()
    assert not code.evaluate(is_wide)
    expect(code).not_to_have_attribute("tabindex", "0")
    chat.reload()
    expect(wrap).to_have_attribute("aria-pressed", "true")
    assert not code.evaluate(is_wide)
    expect(button(blocks.nth(0), "Wrap")).to_have_count(0)
    wrap.click()
    expect(wrap).to_have_attribute("aria-pressed", "false")
    assert code.evaluate(is_wide)


def test_download_gives_the_code_under_its_name(chat: Chat) -> None:
    """Download saves exactly the code, under the last part of the name, without a request."""
    chat.ask_for(CODE)
    chat.wait_state("done")
    blocks = chat.text.locator(".code")
    expect(button(blocks.nth(0), "Copy")).to_be_visible()  # its name is none
    expect(button(blocks.nth(0), "Download")).to_have_count(0)
    expect(button(blocks.nth(2), "Download")).to_have_count(0)
    with chat.page.expect_download() as info:
        button(blocks.nth(1), "Download").click()
    assert info.value.suggested_filename == "caf\u00e9.py"
    expected = f'{LONG_LINE}\ntext = "\u2713 &amp; <b>"\n'.encode()
    assert Path(info.value.path()).read_bytes() == expected


@pytest.mark.usefixtures("stepwise")
def test_code_of_a_running_answer_has_its_buttons(chat: Chat) -> None:
    """A finished block has its buttons while the answer goes on."""
    chat.ask_for_paragraphs("```sh\nls\n```\n\nText between.\n\nText that comes later.", [2])
    expect(button(chat.text.locator(".code"), "Copy")).to_be_visible()
    chat.release()
    chat.wait_state("done")
    expect(button(chat.text.locator(".code"), "Copy")).to_be_visible()
