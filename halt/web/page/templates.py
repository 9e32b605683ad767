"""Templates are compiled before the first request, once in a process.

jinja2 compiles a template when it is first rendered, which takes 5 to 20 ms and would be done by
each of several requests that come at once.
"""

from __future__ import annotations

from types import CodeType
from typing import TYPE_CHECKING

from jinja2 import BytecodeCache

if TYPE_CHECKING:
    from flask import Flask
    from jinja2.bccache import Bucket


class _Compiled(BytecodeCache):
    """The code of every template that was compiled in this process, by name, file and text."""

    def __init__(self) -> None:
        self._codes: dict[tuple[str, str], CodeType] = {}

    def load_bytecode(self, bucket: Bucket) -> None:
        bucket.code = self._codes.get((bucket.key, bucket.checksum))

    def dump_bytecode(self, bucket: Bucket) -> None:
        if bucket.code is not None:
            self._codes[bucket.key, bucket.checksum] = bucket.code


_compiled = _Compiled()


def load_all(app: Flask) -> None:
    """Compile and load every template. To be called when all filters and globals are there."""
    app.jinja_env.bytecode_cache = _compiled
    for name in app.jinja_env.list_templates():
        app.jinja_env.get_template(name)
