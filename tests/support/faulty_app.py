"""Halt with a route that breaks its relay: `gunicorn tests.support.faulty_app:app`."""

from __future__ import annotations

import os
import threading

from flask import Response

from halt.app import create_app
from halt.core import keeper
from halt.web import sink
from halt.web.responses import json_response
from halt.web.services import services

for module, name in ((keeper, "STALL_MAX"), (sink, "STUCK_MAX")):
    if f"TEST_{name}" in os.environ:
        setattr(module, name, float(os.environ[f"TEST_{name}"]))

app = create_app()


def fail() -> None:
    raise ZeroDivisionError("in the loop")


def stall() -> None:
    threading.Event().wait()


@app.post("/break/<how>")
def break_relay(how: str) -> Response:
    """Break the relay of the worker that serves this request."""
    services(app).generations.relay.post(fail if how == "raise" else stall)
    return json_response({})
