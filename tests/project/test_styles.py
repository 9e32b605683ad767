"""Style sheets and templates: values come from tokens.css, and no style stands elsewhere."""

from __future__ import annotations

import re
from pathlib import Path

from halt.assets import STATIC, TEMPLATES
from halt.web.page import manifest
from tests import icons

STYLES = STATIC / "css"
TOKENS = "tokens.css"
#: Colours in any notation; the system's own, for forced colours and print, may be used everywhere.
COLOUR = re.compile(
    r"#[0-9a-f]{3,8}\b|\b(?:rgba?|hsla?|hwb|lab|lch|oklab|oklch|color|light-dark)\("
    r"|\b(?:white|black|red|green|blue|gr[ae]y|silver|orange|yellow|purple|navy)\b",
    re.IGNORECASE,
)


def declarations(path: Path) -> list[tuple[str, str]]:
    """The properties of a style sheet with their values."""
    text = re.sub(r"/\*.*?\*/", "", path.read_text(), flags=re.DOTALL)
    blocks = re.findall(r"\{([^{}]*)\}", text)
    pairs = (part.partition(":") for block in blocks for part in block.split(";"))
    return [(name.strip(), value.strip()) for name, _, value in pairs if value]


def test_colours_are_in_the_tokens_alone() -> None:
    """No style sheet but tokens.css names a colour, so that a theme is in one file."""
    named = [
        f"{path.name}: {name}: {value}"
        for path in sorted(STYLES.glob("*.css"))
        if path.name != TOKENS
        for name, value in declarations(path)
        if COLOUR.search(re.sub(r"var\([^()]*\)|url\([^()]*\)", "", value))
    ]
    assert named == []


def test_hover_is_shown_for_pointers_that_hover() -> None:
    """Each rule with `:hover` is for pointers that hover: a touch leaves its element hovered."""
    block = re.compile(r"@media \(hover: hover\) \{(?:[^{}]*\{[^{}]*\})*[^{}]*\}")
    faults = [
        path.name
        for path in sorted(STYLES.glob("*.css"))
        if ":hover" in block.sub("", re.sub(r"/\*.*?\*/", "", path.read_text(), flags=re.DOTALL))
    ]
    assert faults == []


def test_colour_around_an_installed_page_is_that_of_its_paper() -> None:
    """What browsers show around the page, and before it, has the colour of `--paper`."""
    paper = dict(declarations(STYLES / TOKENS))["--paper"]
    assert COLOUR.search(paper)
    light, dark = re.findall(r"#[0-9a-f]{6}", paper)
    base = (TEMPLATES / "base.html").read_text()
    assert f'{{"light": "{light}", "dark": "{dark}"}}' in base
    assert {manifest.PAPER, icons.GROUND} == {light}


def test_every_custom_property_is_defined_and_used() -> None:
    """Each custom property is used by a style sheet or a script, and none is used undefined."""
    defined, used = set(), set()
    for path in STYLES.glob("*.css"):
        for name, value in declarations(path):
            defined |= {name} if name.startswith("--") else set()
            used |= set(re.findall(r"var\((--[\w-]+)", value))
    scripts = "".join(path.read_text() for path in (STATIC / "js").rglob("*.js"))
    set_by_scripts = set(re.findall(r"--[a-z][\w-]*", scripts))
    assert used - defined - set_by_scripts == set()
    assert defined - used - set_by_scripts == set()


def test_every_style_sheet_is_used_by_a_page() -> None:
    """Each file of static/css is in a template or its list, or loaded by a module on demand."""
    templates = "".join(path.read_text() for path in TEMPLATES.glob("*.html"))
    lists = re.findall(r"\bstyles = \[([^\]]*)\]|set sheets = \[([^\]]*)\]", templates)
    modules = (STATIC / "js" / "lib" / "on_demand.js").read_text()
    scripts = "".join(path.read_text() for path in (STATIC / "js").rglob("*.js"))
    lists += re.findall(r"\bSTYLES = (\{[^}]*\})()", modules)
    lists += re.findall(r'loadStyle\(("[^"]+")\)()', scripts)
    listed = set(re.findall(r'["+]([\w-]+)(?=["+])', str(lists)))
    listed |= set(re.findall(r"filename='css/([\w-]+)\.css'", templates))
    assert {path.stem for path in STYLES.glob("*.css")} == listed


def test_templates_have_no_style_and_no_script_of_their_own() -> None:
    """No template has a style or a script inline, which the security policy would refuse."""
    pattern = re.compile(r"\sstyle=|<style|\son[a-z]+=\"|<script(?![^>]*\bsrc=)|javascript:", re.I)
    faults = [
        f"{path.name}: {match[0]}"
        for path in sorted(TEMPLATES.glob("*.html"))
        for match in pattern.finditer(re.sub(r"\{#.*?#\}", "", path.read_text(), flags=re.DOTALL))
    ]
    assert faults == []
