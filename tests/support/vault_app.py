"""Halt with a route about its vault: `gunicorn tests.support.vault_app:app`."""

from __future__ import annotations

from dataclasses import replace

from flask import Response

from halt.app import create_app
from halt.connected.vault import make_vault
from halt.web.responses import json_response
from halt.web.services import services

app = create_app()


@app.get("/vault")
def vault() -> Response:
    """Whether this worker's vault would seal with SQLite, and with PostgreSQL."""
    config = services().config
    shared = replace(config, database_url="postgresql://halt@db.example/halt")
    return json_response([make_vault(config).can_seal, make_vault(shared).can_seal])
