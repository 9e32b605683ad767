"""Which of Halt's types msgspec has made its tables for. `python -m tests.support.struct_tables`: after the imports.

msgspec has no way to ask for it. But a Struct class refers to its tables, and the garbage collector
can be asked for what an object refers to; a class of another kind keeps them as an attribute.
"""

from __future__ import annotations

import gc
import importlib
import json
import pkgutil
from collections.abc import Iterator
from typing import Any, get_args, get_type_hints

import msgspec

import halt


def import_all() -> None:
    """Import every module of Halt, and the application."""
    for each in pkgutil.walk_packages(halt.__path__, "halt."):
        if "migrations" not in each.name:  # Alembic's scripts, run by Alembic alone
            importlib.import_module(each.name)
    importlib.import_module("app")


def struct_types(base: type = msgspec.Struct) -> Iterator[type]:
    """All Struct types of Halt's that there are."""
    each: type
    for each in base.__subclasses__():
        if each.__module__.startswith("halt."):
            yield each
        yield from struct_types(each)


def is_built(kind: type) -> bool:
    """msgspec has made the tables that it decodes this type by."""
    if issubclass(kind, msgspec.Struct):
        return any(type(each).__name__ == "StructInfo" for each in gc.get_referents(kind))
    return "__msgspec_cache__" in vars(kind)


def add_field_types(kind: Any, seen: set[type]) -> None:
    """Add this type and all types of Halt's that its fields are made of."""
    for each in get_args(kind):
        add_field_types(each, seen)
    if isinstance(kind, type) and kind.__module__.startswith("halt.") and kind not in seen:
        seen.add(kind)
        for hint in get_type_hints(kind, include_extras=True).values():
            add_field_types(hint, seen)


def type_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}".removeprefix("halt.")


def built_types() -> list[str]:
    """The Struct types that are built."""
    return sorted(type_name(each) for each in struct_types() if is_built(each))


def unbuilt_types() -> list[str]:
    """The Struct types that are not built, and types without tables that built ones hold."""
    seen: set[type] = set()
    for each in struct_types():
        if is_built(each):
            add_field_types(each, seen)
    return sorted(
        type_name(each)
        for each in {*seen, *struct_types()}
        if not is_built(each) and not has_own_decoder(each)
    )


def has_own_decoder(kind: type) -> bool:
    """It is checked by its own `of`, and msgspec makes no tables for it."""
    return hasattr(kind, "of")


if __name__ == "__main__":
    import_all()
    print(json.dumps({"built": built_types(), "unbuilt": unbuilt_types()}))
