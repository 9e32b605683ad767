"""Replaces the data: URLs in answers (mostly pictures) by short labels.

    ![a cat](data:image/png;base64,...)   [Picture (PNG, 450 kB): a cat]
    data:audio/mpeg;base64,...            data:audio/mpeg;base64,[Audio (MPEG, 1.2 MB)]

The event log keeps the answer unchanged, as does the store until its pictures are kept as files
(`halt.rendering.pictures`). The page, the terminal and copied text have the label, since a megabyte
of base64 is of no use to a reader and too slow to draw. In messages for the model the label is
`[picture]`.

In code, only data longer than CODE_MAX is replaced.
"""

from __future__ import annotations

import re

# Characters of base64 that are kept: in code, and in text that is no Markdown image. Longer data is
# not read or copied by hand.
CODE_MAX, TEXT_MAX = 10_000, 200
LABEL_FROM = 64  # characters of data after which the label begins to be output

KINDS = {"image": "Picture", "audio": "Audio", "video": "Video"}

_TYPE = r"([A-Za-z0-9.+-]{1,60}/[A-Za-z0-9.+-]{1,60})?((?:;[A-Za-z0-9.=+\"_-]{1,60}){0,4})"
_IMAGE = re.compile(rf"!\[([^\[\]\n]{{0,300}})\]\( ?<?data:{_TYPE},", re.IGNORECASE)
_IMAGE_SO_FAR = re.compile(
    r"!(?:\[[^\[\]\n]{0,300}(?:\](?:\( ?(?:<?(?:d(?:a(?:t(?:a(?::[A-Za-z0-9.+/;=\"_-]{0,360})?"
    r")?)?)?)?)?)?)?)?",
    re.IGNORECASE,
)
_URL = re.compile(rf"data:{_TYPE}(?<=;base64),", re.IGNORECASE)
#: A picture that is kept as a file of the person: its alt text, and its hash.
STORED = re.compile(r"!\[([^\[\]\n]{0,300})\]\(/files/([0-9a-f]{64})\)")
_PICTURE = re.compile(f"{_IMAGE.pattern}|{STORED.pattern}", re.IGNORECASE)
RESTORED_MAX = 100  # pictures of one answer
URL_MAX = 400  # characters of a data: URL before its data
_BASE64 = re.compile(r"[A-Za-z0-9+/=_%-]*")
_QUOTED = re.compile(r"[^\s<>()]*")  # data that is not base64, in an image's parentheses
_AFTER = re.compile(r">?[ \t]{0,100}+(?:\"[^\"\n]{0,300}\"|'[^'\n]{0,300}')?[ \t]{0,100}+\)")
_AFTER_SO_FAR = re.compile(r">?[ \t]{0,100}+(?:\"[^\"\n]{0,300}\"?|'[^'\n]{0,300}'?)?[ \t]{0,100}+")
_FENCE = re.compile(r"[ \t>]*(?:(?:[-*+]|[0-9]{1,9}[.)])[ \t]+)?(`{3,}|~{3,})")
_MARK = re.compile("[!,]")
_CLOSING = frozenset(")]}|.,;:?'\"")  # no separator before these
_LINE_START_MAX = 40  # characters at the start of a line in which a fence can begin


def replace(text: str) -> str:
    """A whole text with labels in place of its data: URLs."""
    return _filtered(text, DataUrlFilter())


def labelled(text: str) -> str:
    """A whole text with labels in place of its data: URLs and its stored pictures."""
    return STORED.sub(lambda match: _stored_label(match[1]), replace(text))


def replace_for_model(text: str) -> str:
    """A whole text with the short labels for models, such as `[picture]`."""
    return STORED.sub("[picture]", _filtered(text, DataUrlFilter(for_model=True)))


def restored(text: str, original: str) -> str:
    """A text that was edited from `labelled(original)`, with its pictures in place again.

    Also one that was edited before the pictures of `original` were stored. A picture whose label
    the user has changed or removed is not in the result; so is one after RESTORED_MAX others.
    """
    at = 0
    for _ in range(RESTORED_MAX):
        match = _PICTURE.search(original, at)
        if match is None:
            break
        if stored := STORED.match(original, match.start()):
            at = stored.end()
            if label := re.search(_label_pattern(stored[1]), text):
                text = text[: label.start()] + stored[0] + text[label.end() :]
            continue
        data = _BASE64 if match[3].lower().endswith(";base64") else _QUOTED
        at = _end_of(data, original, match.end())
        at = _end_of(_AFTER, original, at)
        picture = original[match.start() : at]
        exact_label = replace(picture).strip()
        if exact_label and exact_label != picture:
            text = text.replace(exact_label, picture, 1)
    return text


def _stored_label(alt: str) -> str:
    """The label of a picture that is stored, without its format and size."""
    return f"[Picture{_of_alt(alt, 'picture')}]"


def _label_pattern(alt: str) -> str:
    """The pattern of a stored picture's label, and of its label before it was stored."""
    head = r"(?:data:image/[a-z0-9.+-]{1,60};base64,)?"  # of one that was no Markdown
    return rf"{head}\[Picture(?: \([^()\n]{{1,60}}\))?{re.escape(_of_alt(alt, 'picture'))}\]"


def _of_alt(alt: str, kind: str) -> str:
    """The end of a label: the alt text, "" for one that says no more than the kind."""
    alt = alt.strip()
    return f": {alt}" if alt and alt.lower() not in {"image", "picture", kind} else ""


def _end_of(pattern: re.Pattern[str], text: str, at: int) -> int:
    """The end of the pattern's match at `at`; `at` if it does not match there."""
    match = pattern.match(text, at)
    return at if match is None else match.end()


def _filtered(text: str, url_filter: DataUrlFilter) -> str:
    return url_filter.feed(text) + url_filter.rest() if "data:" in text.lower() else text


def label_of(media_type: str, size: int | None, *, whole: bool = True) -> str:
    """A label such as `Picture (PNG, 450 kB)`. `size` in bytes; None: not known."""
    facts = [_format(media_type)] if "/" in media_type else []
    facts += [_size_text(size)] if size is not None else []
    facts += [] if whole else ["incomplete"]
    kind = _kind(media_type)
    return f"{kind} ({', '.join(facts)})" if facts else kind


def _kind(media_type: str) -> str:
    return KINDS.get(media_type.partition("/")[0].lower(), "File")


def _format(media_type: str) -> str:
    """`PNG` for `image/png`, `SVG` for `image/svg+xml`, `ICON` for `image/vnd.microsoft.icon`."""
    subtype = media_type.partition("/")[2].partition("+")[0].rpartition(".")[2]
    return subtype.lower().removeprefix("x-").upper()


def _size_text(size: int) -> str:
    if size < 1000:
        return f"{size} B"
    return f"{size / 1000:.0f} kB" if size < 999_500 else f"{size / 1_000_000:.1f} MB"


def decoded_size(length: int) -> int:
    """Bytes that this many characters of base64 (without padding) decode to."""
    return length * 3 // 4


class DataUrlFilter:
    """Replaces the data: URLs of a text that arrives in pieces.

    The output depends on the text so far, never on how it was cut into pieces. Only the data and
    text that may become Markdown's image syntax are held back.
    """

    def __init__(self, *, for_model: bool = False) -> None:
        """`for_model`: use the short labels, such as `[picture]`."""
        self._for_model = for_model
        self._held = ""
        # State of the text passed through: whether it ends in code, and the current line.
        self._fence = ""  # the mark of the open fence; "" outside a fence
        self._line_start = ""  # first characters of the current line
        self._backtick_runs = 0  # runs of backticks in the current line
        self._line_end = ""  # last characters of the current line
        # State of the data: URL that is arriving.
        self._in_data = False
        self._source = ""  # Markdown's image syntax up to the data; "" for a bare URL
        self._alt = ""
        self._media_type = ""
        self._data = _BASE64
        self._kept_max = 0  # data up to this many characters is kept unchanged
        self._kept_pieces: list[str] = []  # the data, while it may still be kept
        self._data_length = 0
        self._padding = 0
        self._label_begun = False  # part of the label was output
        self._data_ended = False  # only the closing mark is still awaited
        self._separator = ""  # goes between the label and a word that follows it

    def feed(self, text: str) -> str:
        """Take the next piece; return the output that is due now."""
        if (
            not (self._held or self._in_data or self._separator)
            and "!" not in text
            and "," not in text
        ):
            self._record(text)
            return text
        text, self._held = self._held + text, ""
        out: list[str] = []
        at = 0
        while at < len(text):
            at = self._take_data(text, at, out) if self._in_data else self._take_text(text, at, out)
        return "".join(out)

    def rest(self) -> str:
        """The remaining output if the text ends here. Does not change the filter."""
        if not self._in_data:
            return self._held
        if not self._label_begun and (
            self._data_length <= self._kept_max or self._data_ended or not self._data_length
        ):
            return self._source + "".join(self._kept_pieces) + self._held
        size = self._size_in_bytes()
        is_complete = self._data_ended or not self._source  # a bare URL has no closing mark
        if self._for_model:
            return f"[{_kind(self._media_type).lower()}]{self._held}"
        if self._label_begun:
            return f"{_size_text(size)}{'' if is_complete else ', incomplete'})]{self._held}"
        return f"[{label_of(self._media_type, size, whole=is_complete)}]{self._held}"

    # --- text ---------------------------------------------------------------------------------

    def _take_text(self, text: str, at: int, out: list[str]) -> int:
        """Pass text through, up to data or to a possible image mark; return the new position."""
        if self._separator:
            out.append("" if text[at] in _CLOSING or text[at].isspace() else self._separator)
            self._separator = ""
        mark = _MARK.search(text, at)
        end = mark.start() if mark else len(text)
        out.append(text[at:end])
        self._record(text[at:end])
        if end == len(text):
            return end
        if text[end] == ",":
            out.append(",")
            self._record(",")
            if url := _match_at_end(_URL, self._line_end[-URL_MAX:]):
                self._begin_data(
                    url[1] or "text/plain", TEXT_MAX if not self._in_code else CODE_MAX
                )
            return end + 1
        if not self._in_code:
            if image := _IMAGE.match(text, end):
                self._begin_data(image[2] or "text/plain", 0)
                self._source, self._alt = image[0], image[1]
                self._data = _BASE64 if image[3].lower().endswith(";base64") else _QUOTED
                return image.end()
            if _IMAGE_SO_FAR.fullmatch(text, end):
                self._held = text[end:]
                return len(text)
        out.append("!")
        self._record("!")
        return end + 1

    @property
    def _in_code(self) -> bool:
        return bool(self._fence) or self._backtick_runs % 2 == 1

    def _record(self, text: str) -> None:
        """Update the state of the current line and fence for text that was output."""
        if "\n" not in text:  # most pieces of an answer
            self._record_part(text)
            return
        *lines, last = text.split("\n")
        for line in lines:
            self._record_part(line)
            self._end_line()
        self._record_part(last)

    def _record_part(self, part: str) -> None:
        if len(self._line_start) < _LINE_START_MAX:
            self._line_start += part[: _LINE_START_MAX - len(self._line_start)]
        if "`" in part:
            runs = len(re.findall("`+", part))
            self._backtick_runs += runs - (part[0] == "`" and self._line_end[-1:] == "`")
        self._line_end += part
        if len(self._line_end) > 4 * URL_MAX:
            self._line_end = self._line_end[-URL_MAX:]

    def _end_line(self) -> None:
        opening = _FENCE.match(self._line_start)
        if self._fence:
            bare = self._line_start.strip(" \t>")
            if bare.startswith(self._fence) and not bare.strip(self._fence[0]):
                self._fence = ""
        elif opening and (opening[1][0] == "~" or "`" not in self._line_start[opening.end() :]):
            self._fence = opening[1]
        self._line_start, self._backtick_runs, self._line_end = "", 0, ""

    # --- data ---------------------------------------------------------------------------------

    def _begin_data(self, media_type: str, kept_max: int) -> None:
        self._in_data, self._data_ended, self._label_begun = True, False, False
        self._source, self._alt, self._media_type, self._data = "", "", media_type, _BASE64
        self._kept_max, self._kept_pieces, self._data_length, self._padding = kept_max, [], 0, 0

    def _take_data(self, text: str, at: int, out: list[str]) -> int:
        """Take data and its closing mark, if there is one; return the new position."""
        if not self._data_ended:
            match = self._data.match(text, at)
            piece = match[0] if match else ""
            self._data_length += len(piece)
            self._padding += piece.count("=")
            if self._data_length <= max(self._kept_max, LABEL_FROM):
                self._kept_pieces.append(piece)
            elif not self._label_begun:
                self._label_begun = True
                out.append("" if self._for_model else f"[{label_of(self._media_type, None)[:-1]}, ")
            at += len(piece)
            if at == len(text):
                return at
            self._data_ended = True
        if not self._source:
            self._end_data(out, keep=not self._label_begun and self._data_length <= self._kept_max)
            return at
        if after := _AFTER.match(text, at):
            self._end_data(out, keep=not self._data_length, after=after[0])
            return after.end()
        if _AFTER_SO_FAR.fullmatch(text, at):
            self._held = text[at:]
            return len(text)
        self._end_data(out, keep=not self._label_begun)
        return at

    def _size_in_bytes(self) -> int:
        if self._data is _QUOTED:
            return self._data_length
        return decoded_size(self._data_length - self._padding)

    def _end_data(self, out: list[str], *, keep: bool, after: str = "") -> None:
        """Finish a data: URL. `keep`: output it unchanged, as it has no data or little."""
        self._in_data = False
        before = self._line_end
        if keep:
            source_text = self._source + "".join(self._kept_pieces) + after
            out.append(source_text)
            self._record(source_text)
            return
        if self._for_model:
            out.append(f"[{_kind(self._media_type).lower()}]")
        else:
            size = self._size_in_bytes()
            label = (
                f"{_size_text(size)})"
                if self._label_begun
                else f"[{label_of(self._media_type, size)}"
            )
            alt = _of_alt(self._alt, _kind(self._media_type).lower())
            out.append(f"{label}{alt}]")
        if self._source:  # an image gets its own line, unless it stands within one
            self._separator = " " if before.strip() else "\n"
        self._line_start, self._line_end = self._line_start + "!", "!"  # the line is not empty


def _match_at_end(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    """The match of the last data: URL, if it ends where the text ends."""
    at = text.lower().rfind("data:")
    return pattern.fullmatch(text, at) if at >= 0 else None
