"""Hypothesis strategies for values that match a JSON schema as msgspec writes it."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

Schema = dict[str, Any]

_TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
_ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | _TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3),
    max_leaves=6,
)


def fitting(schema: Schema, shapes: dict[str, Schema]) -> st.SearchStrategy[Any]:
    """Values that fit the schema. `shapes` are those that a `$ref` names."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return st.deferred(lambda: fitting(shapes[name], shapes))
    if "anyOf" in schema:
        return st.one_of([fitting(option, shapes) for option in schema["anyOf"]])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if "const" in schema:
        return st.just(schema["const"])
    kind = schema.get("type")
    if kind == "object":
        return _objects(schema, shapes)
    if kind == "array":
        least, most = schema.get("minItems", 0), min(schema.get("maxItems", 3), 3)
        inner = fitting(schema.get("items") or {}, shapes)
        return st.lists(inner, min_size=least, max_size=max(least, most))
    if kind == "string":
        if "pattern" in schema:
            return st.from_regex(schema["pattern"].replace(r"\Z", "$"), fullmatch=True)
        least = schema.get("minLength", 0)
        return st.text(st.characters(codec="utf-8"), min_size=least, max_size=least + 20)
    if kind == "integer":
        return st.integers(schema.get("minimum", -(2**63)), _below(schema, 2**63 - 1))
    if kind == "number":
        bounds = schema.get("minimum"), schema.get("maximum", schema.get("exclusiveMaximum"))
        return st.floats(*bounds, allow_nan=False, allow_infinity=False)
    return {"boolean": st.booleans(), "null": st.none()}.get(str(kind), _ANYTHING)


def _below(schema: Schema, most: int) -> int:
    if "exclusiveMaximum" in schema:
        return int(schema["exclusiveMaximum"]) - 1
    return int(schema.get("maximum", most))


def _objects(schema: Schema, shapes: dict[str, Schema]) -> st.SearchStrategy[Any]:
    fields = {name: fitting(field, shapes) for name, field in schema.get("properties", {}).items()}
    if not fields:
        return st.dictionaries(_TEXT, _ANYTHING, max_size=3)
    required = {name: fields[name] for name in schema.get("required", ())}
    optional = {name: value for name, value in fields.items() if name not in required}
    return st.fixed_dictionaries(required, optional=optional)
