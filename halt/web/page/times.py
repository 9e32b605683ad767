"""Times as templates show them."""

from __future__ import annotations

import time
from datetime import UTC, datetime

from flask import Flask


def install(app: Flask) -> None:
    """Install the filters in the application."""
    app.jinja_env.filters["ago"] = ago
    app.jinja_env.filters["moment"] = moment


def moment(seconds: float) -> str:
    """Seconds since 1970 as an HTML `datetime` value, in UTC."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def ago(at: float) -> str:
    """How long ago a time is in words; the date after 30 days. `at` is in seconds since 1970."""
    seconds = time.time() - at
    for unit, length, most in (("minute", 60, 60), ("hour", 3600, 24), ("day", 86_400, 31)):
        count = int(seconds // length)
        if count < 1:
            return "just now" if unit == "minute" else f"1 {unit} ago"
        if count < most:
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    day = datetime.fromtimestamp(at, UTC)
    return f"{day.day} {day:%B %Y}"
