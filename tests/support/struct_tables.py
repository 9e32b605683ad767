"""List the types of Halt for which msgspec has built its decoding tables.

`python -m tests.support.struct_tables` prints those that the imports have built, and the others.
msgspec has no function for it. But a Struct class refers to its tables, and the garbage collector
lists the objects that an object refers to; a class of another kind has them as an attribute.
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
    for module in pkgutil.walk_packages(halt.__path__, "halt."):
        if "migrations" not in module.name:  # Alembic's scripts, run by Alembic alone
            importlib.import_module(module.name)
    importlib.import_module("app")


def struct_types(base: type = msgspec.Struct) -> Iterator[type]:
    """All Struct types of Halt that are defined now."""
    kind: type
    for kind in base.__subclasses__():
        if kind.__module__.startswith("halt."):
            yield kind
        yield from struct_types(kind)


def is_built(kind: type) -> bool:
    """Whether msgspec has built the tables with which it decodes this type."""
    if issubclass(kind, msgspec.Struct):
        return any(type(referent).__name__ == "StructInfo" for referent in gc.get_referents(kind))
    return "__msgspec_cache__" in vars(kind)


def add_field_types(kind: Any, known_types: set[type]) -> None:
    """Add this type and all types of Halt in its fields to `known_types`."""
    for argument in get_args(kind):
        add_field_types(argument, known_types)
    if isinstance(kind, type) and kind.__module__.startswith("halt.") and kind not in known_types:
        known_types.add(kind)
        for hint in get_type_hints(kind, include_extras=True).values():
            add_field_types(hint, known_types)


def type_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}".removeprefix("halt.")


def built_types() -> list[str]:
    """The names of the Struct types whose tables are built."""
    return sorted(type_name(kind) for kind in struct_types() if is_built(kind))


def unbuilt_types() -> list[str]:
    """The names of types without tables: Struct types, and types in the fields of built ones."""
    known_types: set[type] = set()
    for kind in struct_types():
        if is_built(kind):
            add_field_types(kind, known_types)
    return sorted(
        type_name(kind)
        for kind in {*known_types, *struct_types()}
        if not is_built(kind) and not has_own_decoder(kind)
    )


def has_own_decoder(kind: type) -> bool:
    """Whether the type's method `of` checks its values, so that msgspec builds no tables for it."""
    return hasattr(kind, "of")


if __name__ == "__main__":
    import_all()
    print(json.dumps({"built": built_types(), "unbuilt": unbuilt_types()}))
