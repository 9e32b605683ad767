"""What an answer holds as a data: URL (a picture, as a rule), and the line that stands for it.

    ![a cat](data:image/png;base64,...)   [Picture (PNG, 450 kB): a cat]
    data:audio/mpeg;base64,...            data:audio/mpeg;base64,[Audio (MPEG, 1.2 MB)]

The log and the store keep the answer as it came. The page, the terminal and what is copied have the
line, since a megabyte of letters is neither read nor drawn in time; the model is told `[picture]`.

What stands in code is code: nothing is replaced there, unless it is longer than CODE_MAX.
"""

from __future__ import annotations

import re

# Characters of base64 that stay, in code and in text without Markdown's marks of a picture; longer
# ones are nothing that is read or copied by hand.
CODE_MAX, TEXT_MAX = 10_000, 200
SURE = 64  # characters of a picture after which its line begins to be shown

KINDS = {"image": "Picture", "audio": "Audio", "video": "Video"}

_TYPE = r"([A-Za-z0-9.+-]{1,60}/[A-Za-z0-9.+-]{1,60})?((?:;[A-Za-z0-9.=+\"_-]{1,60}){0,4})"
_IMAGE = re.compile(rf"!\[([^\[\]\n]{{0,300}})\]\( ?<?data:{_TYPE},", re.IGNORECASE)
_IMAGE_SO_FAR = re.compile(
    r"!(?:\[[^\[\]\n]{0,300}(?:\](?:\( ?(?:<?(?:d(?:a(?:t(?:a(?::[A-Za-z0-9.+/;=\"_-]{0,360})?"
    r")?)?)?)?)?)?)?)?",
    re.IGNORECASE,
)
_URL = re.compile(rf"data:{_TYPE}(?<=;base64),", re.IGNORECASE)
URL_MAX = 400  # characters of a data: URL before its data
_BASE64 = re.compile(r"[A-Za-z0-9+/=_%-]*")
_QUOTED = re.compile(r"[^\s<>()]*")  # data that is not base64, in an image's parentheses
_AFTER = re.compile(r">?[ \t]{0,100}+(?:\"[^\"\n]{0,300}\"|'[^'\n]{0,300}')?[ \t]{0,100}+\)")
_AFTER_SO_FAR = re.compile(r">?[ \t]{0,100}+(?:\"[^\"\n]{0,300}\"?|'[^'\n]{0,300}'?)?[ \t]{0,100}+")
_FENCE = re.compile(r"[ \t>]*(?:(?:[-*+]|[0-9]{1,9}[.)])[ \t]+)?(`{3,}|~{3,})")
_MARK = re.compile("[!,]")
_NO_BREAK = frozenset(")]}|.,;:?'\"")
_HEAD_MAX = 40  # characters of a line in which a fence begins


def replace(text: str) -> str:
    """A whole text as it is shown."""
    return _whole(text, DataUrlFilter())


def replace_for_model(text: str) -> str:
    """A whole text as a model is told of it."""
    return _whole(text, DataUrlFilter(for_model=True))


def _whole(text: str, pictures: DataUrlFilter) -> str:
    return pictures.feed(text) + pictures.rest() if "data:" in text.lower() else text


def label_of(media_type: str, size: int | None, *, whole: bool = True) -> str:
    """`Picture (PNG, 450 kB)`. `size` in bytes, None where it is not known."""
    facts = [_format(media_type)] if "/" in media_type else []
    facts += [_size(size)] if size is not None else []
    facts += [] if whole else ["incomplete"]
    kind = _kind(media_type)
    return f"{kind} ({', '.join(facts)})" if facts else kind


def _kind(media_type: str) -> str:
    return KINDS.get(media_type.partition("/")[0].lower(), "File")


def _format(media_type: str) -> str:
    """`PNG` of `image/png`, `SVG` of `image/svg+xml`, `ICON` of `image/vnd.microsoft.icon`."""
    subtype = media_type.partition("/")[2].partition("+")[0].rpartition(".")[2]
    return subtype.lower().removeprefix("x-").upper()


def _size(size: int) -> str:
    if size < 1000:
        return f"{size} B"
    return f"{size / 1000:.0f} kB" if size < 999_500 else f"{size / 1_000_000:.1f} MB"


def decoded_size(letters: int) -> int:
    """Bytes that so many characters of base64 stand for, without their padding."""
    return letters * 3 // 4


class DataUrlFilter:
    """Text in pieces with its data: URLs replaced.

    What comes out is a function of the text so far, never of how it was cut into pieces. Held back
    is no more than what may become Markdown's marks of a picture, and the data itself.
    """

    def __init__(self, *, for_model: bool = False) -> None:
        """`for_model`: for a model, in short."""
        self._for_model = for_model
        self._held = ""
        # Of the text that was let through: whether it ends in code, and its last characters.
        self._fence = ""  # the open fence, "" outside
        self._head = ""  # the line's beginning
        self._ticks = 0  # runs of backticks in the line
        self._back = ""  # the line's last characters
        # Of the data that is coming in.
        self._inside = False
        self._source = ""  # its marks and URL before the data, where Markdown's marks are there
        self._alt = ""
        self._type = ""
        self._data = _BASE64
        self._most = 0  # characters that stay as they are
        self._pieces: list[str] = []  # while they may stay
        self._letters = 0
        self._padding = 0
        self._began = False  # its line has begun
        self._ends = False  # the data is complete, its closing mark is awaited
        self._breaks = ""  # what is put between its line and a word behind it

    def feed(self, text: str) -> str:
        """Take the next piece; what is to be shown now."""
        if not (self._held or self._inside or self._breaks) and "!" not in text and "," not in text:
            self._pass(text)
            return text
        text, self._held = self._held + text, ""
        out: list[str] = []
        at = 0
        while at < len(text):
            at = self._take(text, at, out) if self._inside else self._look(text, at, out)
        return "".join(out)

    def rest(self) -> str:
        """What is still to be shown where the text ends here. Changes nothing."""
        if not self._inside:
            return self._held
        if not self._began and (self._letters <= self._most or self._ends or not self._letters):
            return self._source + "".join(self._pieces) + self._held
        size = self._bytes()
        whole = self._ends or not self._source  # a bare URL has no closing mark
        if self._for_model:
            return f"[{_kind(self._type).lower()}]{self._held}"
        if self._began:
            return f"{_size(size)}{'' if whole else ', incomplete'})]{self._held}"
        return f"[{label_of(self._type, size, whole=whole)}]{self._held}"

    # --- text ---------------------------------------------------------------------------------

    def _look(self, text: str, at: int, out: list[str]) -> int:
        """Let through what is text, up to data or to what may become its marks."""
        if self._breaks:
            out.append("" if text[at] in _NO_BREAK or text[at].isspace() else self._breaks)
            self._breaks = ""
        found = _MARK.search(text, at)
        end = found.start() if found else len(text)
        out.append(text[at:end])
        self._pass(text[at:end])
        if end == len(text):
            return end
        if text[end] == ",":
            out.append(",")
            self._pass(",")
            if url := _last(_URL, self._back[-URL_MAX:]):
                self._begin(url[1] or "text/plain", TEXT_MAX if not self._code else CODE_MAX)
            return end + 1
        if not self._code:
            if image := _IMAGE.match(text, end):
                self._begin(image[2] or "text/plain", 0)
                self._source, self._alt = image[0], image[1]
                self._data = _BASE64 if image[3].lower().endswith(";base64") else _QUOTED
                return image.end()
            if _IMAGE_SO_FAR.fullmatch(text, end):
                self._held = text[end:]
                return len(text)
        out.append("!")
        self._pass("!")
        return end + 1

    @property
    def _code(self) -> bool:
        return bool(self._fence) or self._ticks % 2 == 1

    def _pass(self, text: str) -> None:
        """Keep what has to be known of text that is let through."""
        if "\n" not in text:  # most pieces of an answer
            self._in_line(text)
            return
        *lines, last = text.split("\n")
        for line in lines:
            self._in_line(line)
            self._end_line()
        self._in_line(last)

    def _in_line(self, part: str) -> None:
        if len(self._head) < _HEAD_MAX:
            self._head += part[: _HEAD_MAX - len(self._head)]
        if "`" in part:
            runs = len(re.findall("`+", part))
            self._ticks += runs - (part[0] == "`" and self._back[-1:] == "`")
        self._back += part
        if len(self._back) > 4 * URL_MAX:
            self._back = self._back[-URL_MAX:]

    def _end_line(self) -> None:
        opening = _FENCE.match(self._head)
        if self._fence:
            bare = self._head.strip(" \t>")
            if bare.startswith(self._fence) and not bare.strip(self._fence[0]):
                self._fence = ""
        elif opening and (opening[1][0] == "~" or "`" not in self._head[opening.end() :]):
            self._fence = opening[1]
        self._head, self._ticks, self._back = "", 0, ""

    # --- data ---------------------------------------------------------------------------------

    def _begin(self, media_type: str, most: int) -> None:
        self._inside, self._ends, self._began = True, False, False
        self._source, self._alt, self._type, self._data = "", "", media_type, _BASE64
        self._most, self._pieces, self._letters, self._padding = most, [], 0, 0

    def _take(self, text: str, at: int, out: list[str]) -> int:
        """Take data, and its closing mark where there is one."""
        if not self._ends:
            found = self._data.match(text, at)
            piece = found[0] if found else ""
            self._letters += len(piece)
            self._padding += piece.count("=")
            if self._letters <= max(self._most, SURE):
                self._pieces.append(piece)
            elif not self._began:
                self._began = True
                out.append("" if self._for_model else f"[{label_of(self._type, None)[:-1]}, ")
            at += len(piece)
            if at == len(text):
                return at
            self._ends = True
        if not self._source:
            self._end(out, close=not self._began and self._letters <= self._most)
            return at
        if after := _AFTER.match(text, at):
            self._end(out, close=not self._letters, after=after[0])
            return after.end()
        if _AFTER_SO_FAR.fullmatch(text, at):
            self._held = text[at:]
            return len(text)
        self._end(out, close=not self._began)
        return at

    def _bytes(self) -> int:
        if self._data is _QUOTED:
            return self._letters
        return decoded_size(self._letters - self._padding)

    def _end(self, out: list[str], *, close: bool, after: str = "") -> None:
        """The data is complete. `close`: it stays as it is, being none or short."""
        self._inside = False
        before = self._back
        if close:
            kept = self._source + "".join(self._pieces) + after
            out.append(kept)
            self._pass(kept)
            return
        if self._for_model:
            out.append(f"[{_kind(self._type).lower()}]")
        else:
            size = self._bytes()
            begun = f"{_size(size)})" if self._began else f"[{label_of(self._type, size)}"
            alt = self._alt.strip()
            named = alt and alt.lower() not in {"image", "picture", _kind(self._type).lower()}
            out.append(f"{begun}{f': {alt}' if named else ''}]")
        if self._source:  # a line of its own, where it does not stand in one
            self._breaks = " " if before.strip() else "\n"
        self._head, self._back = self._head + "!", "!"  # the line is not empty


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    """The match that ends where the text ends."""
    at = text.lower().rfind("data:")
    return pattern.fullmatch(text, at) if at >= 0 else None
