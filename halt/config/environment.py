"""Reads the environment variables into one checked `Config`. Only this module uses `os.environ`.

A wrong value raises ConfigError: one line with the variable, its value and what is allowed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from halt.config.checks import check, check_proxies_and_certificates
from halt.config.settings import FALSE, TRUE, Config, ConfigError


def load(environ: Mapping[str, str] | None = None) -> Config:
    """Read the settings from `environ` (default: the process's).

    An empty variable counts as unset. Raises ConfigError.
    """
    env = os.environ if environ is None else environ
    values: dict[str, Any] = {}
    for item in fields(Config):
        meta = item.metadata
        raw = env.get(meta["env"], "").strip()
        if raw:
            values[item.name] = _parse(meta["env"], raw, str(item.type), meta["low"], meta["high"])
    config = Config(**values)
    check(config)
    check_proxies_and_certificates(env)
    return config


def _parse(name: str, raw: str, kind: str, low: float | None, high: float | None) -> Any:
    if kind == "str":
        return raw
    if kind == "tuple[str, ...]":
        words = tuple(dict.fromkeys(word for part in raw.split(",") if (word := part.strip())))
        if not words:
            raise ConfigError(f"{name}={raw!r} names nothing: leave it unset, or name something.")
        return words
    if kind == "bool":
        if raw.lower() in TRUE | FALSE:
            return raw.lower() in TRUE
        raise ConfigError(f"{name}={raw!r} is not allowed: use 1 or 0.")
    noun = "a whole number" if kind == "int" else "a number"
    try:
        value = int(raw) if kind == "int" else float(raw)
    except ValueError:
        value = float("nan")
    if low is not None and high is not None and low <= value <= high:
        return value
    raise ConfigError(f"{name}={raw!r} is not allowed: use {noun} from {low:,} to {high:,}.")


def variable(name: str) -> str:
    """The value of this environment variable, stripped; empty if it is unset."""
    return os.environ.get(name, "").strip()


def take(name: str) -> str:
    """Remove this environment variable and return its value; empty if it is unset."""
    return os.environ.pop(name, "")


def publish(values: Mapping[str, str]) -> None:
    """Set environment variables, for this process and the workers that it will fork."""
    os.environ.update(values)
