"""Environment to one frozen, checked `Config`; the only reader of `os.environ`.

A wrong value raises ConfigError, one line that names the variable, its value and what is allowed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from halt.config.checks import check, check_way
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
    check_way(env)
    return config


def _parse(name: str, raw: str, kind: str, low: float | None, high: float | None) -> Any:
    if kind == "str":
        return raw
    if kind == "tuple[str, ...]":
        return tuple(dict.fromkeys(word for each in raw.split(",") if (word := each.strip())))
    if kind == "bool":
        if raw.lower() in TRUE | FALSE:
            return raw.lower() in TRUE
        raise ConfigError(f"{name}={raw!r} is not a switch: use 1 or 0.")
    noun = "a whole number" if kind == "int" else "a number"
    try:
        value = int(raw) if kind == "int" else float(raw)
    except ValueError:
        value = float("nan")
    if low is not None and high is not None and low <= value <= high:
        return value
    raise ConfigError(f"{name}={raw!r} is not allowed: use {noun} from {low:g} to {high:g}.")


def variable(name: str) -> str:
    """The value of a variable that a configuration file names, empty where it is unset."""
    return os.environ.get(name, "").strip()


def take(name: str) -> str:
    """The value of a variable, empty where it is unset; others do not find it afterwards."""
    return os.environ.pop(name, "")


def publish(values: Mapping[str, str]) -> None:
    """Hand settings to the worker processes that this process will fork."""
    os.environ.update(values)
