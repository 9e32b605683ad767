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

if "TEST_STUCK_MAX" in os.environ:
    sink.STUCK_MAX = float(os.environ["TEST_STUCK_MAX"])

app = create_app()


def raise_in_loop() -> None:
    raise ZeroDivisionError("in the loop")


def block_loop() -> None:
    threading.Event().wait()


@app.post("/break/<fault>")
def break_relay(fault: str) -> Response:
    """Break the relay of the worker that serves this request."""
    if "TEST_STALL_MAX" in os.environ:  # not before: a slow machine's turns are long
        vars(keeper)["STALL_MAX"] = float(os.environ["TEST_STALL_MAX"])
    services(app).generations.relay.post(raise_in_loop if fault == "raise" else block_loop)
    return json_response({})
