"""Halt with a route that lists the modules, templates and types of its process so far:
`gunicorn tests.support.ready_app:app`.
"""

from __future__ import annotations

import sys
from typing import Any

import jinja2
from flask import Response

compiled: list[str] = []
_compile = jinja2.Environment.compile


def _counted(
    self: jinja2.Environment, source: Any, name: Any = None, *rest: Any, **more: Any
) -> Any:
    compiled.append(str(name))
    return _compile(self, source, name, *rest, **more)


jinja2.Environment.compile = _counted  # type: ignore[method-assign]

from halt.app import create_app  # noqa: E402 - which compiles them
from halt.web.responses import json_response  # noqa: E402
from tests.support.struct_tables import built_types  # noqa: E402

app = create_app()


@app.get("/built")
def built() -> Response:
    """Imported modules, compiled templates, and types with decoding tables."""
    return json_response(
        {"modules": sorted(sys.modules), "templates": compiled, "types": built_types()}
    )
