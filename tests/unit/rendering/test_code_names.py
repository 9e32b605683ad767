"""File names of code blocks: where a model says them, and what is left of hostile ones."""

from __future__ import annotations

import re
import time

import pytest

from halt.rendering.code_names import INFO_MAX, NAME_MAX, SUFFIXES, code_name
from halt.rendering.highlighting import ALIASES, Colours
from halt.rendering.markdown import render
from halt.rendering.plain import plain


@pytest.mark.parametrize(
    ("info", "label", "path"),
    [
        ('python title="app.py"', "python", "app.py"),
        ("python title='my app.py'", "python", "my app.py"),
        ("python filename=app.py", "python", "app.py"),
        ('js {1,3} file="src/a.js"', "js", "src/a.js"),
        ('{title="a.rs"}', "", "a.rs"),
        ("app.py", "", "app.py"),
        ("src/main.rs", "", "src/main.rs"),
        ("./src/[id].tsx", "", "./src/[id].tsx"),
        (".env", "", ".env"),
        ("python:src/app.py", "python", "src/app.py"),
        ("12:15:src/app.py", "", "src/app.py"),
        ("python app.py", "python", "app.py"),
        ("docker Dockerfile", "docker", "Dockerfile"),
        ("bash .gitignore", "bash", ".gitignore"),
        ("{.js .numbers} a.js", "js", "a.js"),
        ("{r, echo=FALSE}", "r", ""),
        ("{python}", "python", ""),
        ("js{1,3} title=a.js", "js", "a.js"),
        # No names:
        ("", "", ""),
        ("python", "python", ""),
        ("dockerfile", "dockerfile", ""),
        ("c++", "c++", ""),
        ("node.js", "node.js", ""),
        ("asp.net", "asp.net", ""),
        (".NET", ".NET", ""),
        ("text/html", "text/html", ""),
        ("python title=My-example", "python", ""),
        ("python 3.11", "python", ""),
        ("sh no file at all", "sh", ""),
        ("python title=", "python", ""),
    ],
)
def test_code_name_is_found_behind_the_fence_mark(info: str, label: str, path: str) -> None:
    """The forms that models use give the label and the path; other words are no file."""
    found = code_name(info, "code\n")
    assert (found.label, found.path) == (label, path)
    assert found.name == path.rpartition("/")[2].replace("[", "_").replace("]", "_")


@pytest.mark.parametrize(
    ("line", "path"),
    [
        ("# app.py", "app.py"),
        ("#app.py", "app.py"),
        ("# file: app.py", "app.py"),
        ("# Filename: src/app.py", "src/app.py"),
        ("// src/main.ts", "src/main.ts"),
        ("  <!-- index.html -->  ", "index.html"),
        ("/* style.css */", "style.css"),
        ("{/* App.jsx */}", "App.jsx"),
        ("-- schema.sql", "schema.sql"),
        ("# Dockerfile", "Dockerfile"),
        ("# .env.local", ".env.local"),
        ("# C:\\work\\run.ps1", "C:\\work\\run.ps1"),
        # No names:
        ("# os.path", ""),
        ("# This writes app.py", ""),
        ("/* .button */", ""),
        ("# version 1.2", ""),
        ("#!/usr/bin/env python", ""),
        ("app.py", ""),
        ("# .py", ""),
        ("# ../..", ""),
        ("# https://example.org/a.py", ""),
        ("# " + "a" * INFO_MAX + ".py", ""),
    ],
)
def test_code_name_is_found_in_a_first_line_that_is_only_a_path(line: str, path: str) -> None:
    """A comment that is only a path names the block; a comment with other words does not."""
    assert code_name("", f"{line}\ncode\n").path == path
    assert code_name("", f"code\n{line}\n").path == ""


@pytest.mark.parametrize(
    ("info", "name"),
    [
        ("../../etc/cron.d/run.sh", "run.sh"),
        ("C:\\Windows\\run.bat", "run.bat"),
        ("x" * 200 + ".py", "x" * (NAME_MAX - 3) + ".py"),
        (".env." + "x" * 200, (".env." + "x" * 200)[:NAME_MAX]),
        ('sh title="a b.sh"', "a b.sh"),
        ("a$(b).sh", "a__b_.sh"),
        ('py title="a\u202egpj.py"', ""),
        ("py title=\"<img src=x onerror='alert(1)'>.py\"", ""),
        ("a&quot;onclick=.py", ""),
        ("...py", ""),
    ],
)
def test_code_name_for_a_download_is_short_and_harmless(info: str, name: str) -> None:
    """A download's name is the last part of the path, short, and of harmless characters."""
    assert code_name(info, "").name == name
    for rendered in (render(f"~~~{info}\n~~~"), plain(f"~~~{info}\n~~~")):
        assert re.findall(r'data-name="(.*?)">', rendered) == [name] * bool(name)
        assert "<img" not in rendered


def test_render_named_block_shows_its_path_and_the_colours_of_its_suffix() -> None:
    """The bar shows the path; the colours are the label's, or else those of the suffix."""
    rendered = render("```src/app.py\nx = 1\n```", Colours())
    assert '<div class="code-bar" data-name="app.py">src/app.py</div>' in rendered
    assert "language-python" in rendered
    assert "language-yaml" in render("```yaml app.py\nx = 1\n```", Colours())
    assert "language-docker" in render("```\n# Dockerfile\nFROM a\n```", Colours())


def test_suffixes_name_languages_with_colours() -> None:
    """Each language of a suffix is one that is highlighted."""
    assert set(SUFFIXES.values()) - {""} <= set(ALIASES)


@pytest.mark.parametrize(
    "unit", ['title="', "title=' ", "/* ", "<!-- ", "a:", "file: ", "# ", "./", "..", "[("]
)
def test_code_name_of_hostile_texts_takes_bounded_time(unit: str) -> None:
    """However long the mark's text and the first line are, little of them is read."""
    text = unit * 100_000
    start = time.thread_time()
    for _ in range(10):
        code_name(text, text)
    assert time.thread_time() - start < 1
