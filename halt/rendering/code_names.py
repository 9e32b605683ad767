"""Finds the file name of a code block where the model says it.

It is in the text behind the fence's mark (`python title="app.py"`, `app.py`, `python:src/app.py`,
`python app.py`), or the code's first line is a comment that is only a path (`# src/app.py`).
"""

from __future__ import annotations

import re
from typing import NamedTuple

INFO_MAX = 300  # characters of the text behind a fence's mark, and of the first line, that are read
NAME_MAX = 80  # characters of a name

#: Suffixes of the files that models write, each with the language of its colours ("": none).
SUFFIXES = {
    suffix: language
    for language, suffixes in {
        "": "cfg conf csv env gradle ini ipynb lock log properties tsv txt",
        "asm": "asm s",
        "awk": "awk",
        "bash": "bash sh zsh",
        "bat": "bat cmd",
        "c": "c h",
        "clojure": "clj cljs edn",
        "cmake": "cmake",
        "cpp": "cc cpp cxx hh hpp ino",
        "csharp": "cs",
        "css": "css",
        "dart": "dart",
        "diff": "diff patch",
        "docker": "dockerfile",
        "elixir": "ex exs",
        "erlang": "erl",
        "fortran": "f90",
        "fsharp": "fs",
        "go": "go",
        "graphql": "gql graphql",
        "groovy": "groovy",
        "haskell": "hs",
        "html": "ejs htm html",
        "java": "java",
        "javascript": "cjs js mjs",
        "jinja": "j2 jinja jinja2",
        "json": "json json5 jsonc jsonl webmanifest",
        "jsx": "jsx",
        "julia": "jl",
        "kotlin": "kt kts",
        "latex": "cls sty tex",
        "less": "less",
        "lisp": "el lisp",
        "lua": "lua",
        "makefile": "mak mk",
        "markdown": "markdown md mdx",
        "nim": "nim",
        "nix": "nix",
        "objective-c": "m mm",
        "perl": "pl pm",
        "php": "php",
        "powershell": "ps1 psm1",
        "protobuf": "proto",
        "python": "py pyi pyw",
        "r": "r",
        "ruby": "gemspec rb",
        "rust": "rs",
        "scala": "sc scala",
        "scss": "sass scss",
        "solidity": "sol",
        "sql": "sql",
        "swift": "swift",
        "terraform": "tf tfvars",
        "toml": "toml",
        "tsx": "tsx",
        "typescript": "cts mts ts",
        "typst": "typ",
        "vim": "vim",
        "vue": "svelte vue",
        "xml": "plist svg xml xsd xsl",
        "yaml": "yaml yml",
        "zig": "zig",
    }.items()
    for suffix in suffixes.split()
}
#: Names without a suffix, in lower case.
_WHOLE_NAMES = {
    "brewfile": "ruby",
    "caddyfile": "",
    "containerfile": "docker",
    "dockerfile": "docker",
    "gemfile": "ruby",
    "gnumakefile": "makefile",
    "jenkinsfile": "groovy",
    "justfile": "",
    "makefile": "makefile",
    "procfile": "",
    "rakefile": "ruby",
    "vagrantfile": "ruby",
}
#: Names that begin with a dot: not all, because `.button` and `.NET` are none.
_DOT_NAME = re.compile(
    r"\.(?:env(?:\.[\w-]+)*|\w*(?:rc|ignore|profile|config|attributes|modules)|htaccess)"
)
#: Libraries and languages with names like files.
_NO_FILES = {
    "node.js",
    "next.js",
    "vue.js",
    "nuxt.js",
    "react.js",
    "three.js",
    "d3.js",
    "express.js",
}

# Names with blanks are known in quotes alone.
_PATH = re.compile(r"(?:[A-Za-z]:)?[\w.+@$~()\[\]/\\-]+")
_SPACED_PATH = re.compile(r"(?:[A-Za-z]:)?[\w.+@$~()\[\]/\\ -]+")
_FIELD = re.compile(
    r"(?<![\w-])(?:title|file[_-]?name|file|path|name)[=:]"
    r"""(?:"([^"]*)"|'([^']*)'|([^\s"',}]+))""",
    re.IGNORECASE,
)
_LABEL_AND_PATH = re.compile(r"([A-Za-z][\w+#-]*):(?=[^:])(.+)")
_LINES_AND_PATH = re.compile(r"[0-9]+:[0-9]+:(.+)")
_COMMENT = re.compile(
    r"""[ \t]*+(?:(?:\#|//|--|;|%|::|")[ \t]*+([^\s].*+)"""
    r"""|(?:/\*++[ \t]*+([^\s].*)\*/|<!--[ \t]*+([^\s].*)-->|\{/\*[ \t]*+([^\s].*)\*/\})[ \t]*+)"""
)
_FILE_WORD = re.compile(r"(?:file(?:[ _-]?name)?|path)[ \t]*+:[ \t]*+", re.IGNORECASE)


class CodeName(NamedTuple):
    """What a code block is called. The texts are untrusted."""

    label: str = ""  # the language as the model writes it
    path: str = ""  # to show; "" where the model names no file
    name: str = ""  # the path's last part, fit for a download
    language: str = ""  # of the path's suffix, "" if unknown


def code_name(info: str, code: str) -> CodeName:
    """What the text behind a fence's mark, or the first line of the code, calls the block."""
    label, path = _named(info[:INFO_MAX])
    path = path or _path_of_comment(code.partition("\n")[0])
    name = _download_name(path) if path else ""
    return CodeName(label, path, name, language_of(name)) if name else CodeName(label)


def language_of(name: str) -> str:
    """The language of a file's name, "" if unknown."""
    name = name.lower()
    stem, _, suffix = name.rpartition(".")
    return _WHOLE_NAMES.get(name) or _WHOLE_NAMES.get(stem) or SUFFIXES.get(suffix, "")


def _named(info: str) -> tuple[str, str]:
    """The label and the path in the text behind a fence's mark, each "" for none."""
    words = info.split()
    if not words:
        return "", ""
    first = words[0]
    field = next((text for match in _FIELD.finditer(info) if _is_path(text := _text(match))), "")
    label = _label(first)
    if is_path(first) and first.lower() not in _WHOLE_NAMES:  # `dockerfile` is a language
        return "", first
    if (lines := _LINES_AND_PATH.fullmatch(first)) and is_path(lines[1]):
        return "", lines[1]
    if (pair := _LABEL_AND_PATH.fullmatch(first)) and is_path(pair[2]) and not _FIELD.match(first):
        return pair[1], pair[2]
    return label, field or next((word for word in words[1:] if is_path(word)), "")


def _label(word: str) -> str:
    """The label in the first word, which may have attributes (`js{1,3}`), or be one (`{r}`)."""
    if _FIELD.match(word):
        return ""
    bare = re.fullmatch(r"\{\.?([A-Za-z][\w+#-]*)[,}]?", word)
    return bare[1] if bare else word.partition("{")[0]


def _text(match: re.Match[str]) -> str:
    return next((text for text in match.groups() if text), "")


def is_path(text: str) -> bool:
    """Whether a word is the path of a file of a known kind."""
    return bool(_PATH.fullmatch(text)) and _is_file(text)


def _is_path(text: str) -> bool:
    return bool(_SPACED_PATH.fullmatch(text)) and _is_file(text)


def _is_file(path: str) -> bool:
    if len(path) > INFO_MAX or path.lower() in _NO_FILES:
        return False
    name = re.split(r"[/\\]", path)[-1]
    stem, _, suffix = name.rpartition(".")
    if _DOT_NAME.fullmatch(name) or name.lower() in _WHOLE_NAMES:
        return True
    return bool(stem.strip(".")) and suffix.lower() in SUFFIXES


def _path_of_comment(line: str) -> str:
    """The path that a comment consists of, "" for another line."""
    match = _COMMENT.fullmatch(line) if len(line) <= INFO_MAX else None
    if not match:
        return ""
    text = _text(match).strip()
    path = text[word.end() :] if (word := _FILE_WORD.match(text)) else text
    return path if is_path(path) else ""


def _download_name(path: str) -> str:
    """The last part of a path with harmless characters, at most NAME_MAX; "" if none is left."""
    name = re.sub(r"[^\w .+-]", "_", re.split(r"[/\\]", path)[-1]).strip(" ").rstrip(". ")
    stem, _, suffix = name.rpartition(".")
    if len(name) > NAME_MAX and suffix.lower() in SUFFIXES:
        return f"{stem[: NAME_MAX - len(suffix) - 1]}.{suffix}"
    return name[:NAME_MAX] if name.strip(".") else ""
