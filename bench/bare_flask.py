"""A minimal Flask application for bare gunicorn: the cost of a request without any work."""

from __future__ import annotations

from flask import Flask

app = Flask(__name__)


@app.get("/")
def hello() -> str:
    return "hello"


@app.post("/stop/<stream_id>")
def stop(stream_id: str) -> dict[str, str]:
    return {"id": stream_id, "status": "stopped"}
