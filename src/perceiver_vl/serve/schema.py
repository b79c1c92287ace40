"""The interface's messages as dataclasses: JSON → request, strictly, and dataclass → JSON Schema for `/openapi.json`.

A field says what it is in its metadata: `about` (a sentence), `least` and `most` (numbers, or lengths), `example`.
"""

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union

from perceiver_vl.utils.errors import UsageError
from perceiver_vl.utils.text import did_you_mean

Message = TypeVar("Message")
_PLAIN = {str: "string", int: "integer", float: "number", bool: "boolean"}
_KINDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


def described(about: str, default: Any = dataclasses.MISSING, **limits: Any) -> Any:
    """A field with what is said of it; without a default it is required."""
    metadata = {"about": about, **limits}
    if isinstance(default, list | dict):
        made = type(default)
        return dataclasses.field(default_factory=made, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def parse(kind: type[Message], data: Any) -> Message:
    """JSON's values as a message. Raises `UsageError` for what is missing, unknown, of another type or too much."""
    return _message(kind, data, "request")


def _message(kind: Any, data: Any, place: str) -> Any:
    if not isinstance(data, Mapping):
        raise UsageError(f"{place}: need an object, as in {{{_example(kind)}}}")
    fields = {one.name: one for one in dataclasses.fields(kind)}
    types_of = typing.get_type_hints(kind)
    for name in data:
        if name not in fields:
            raise UsageError(f"{place}: unknown key {name!r}, {did_you_mean(str(name), fields)}")
    for name, one in fields.items():
        required = one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING
        if required and name not in data:
            raise UsageError(f"{place}: {name} is missing: {one.metadata['about']}")
    return kind(**{name: _value(types_of[name], value, name, fields[name].metadata) for name, value in data.items()})


def _example(kind: Any) -> str:
    first = next(one for one in dataclasses.fields(kind))
    return f'"{first.name}": …'


def _value(kind: Any, value: Any, name: str, limits: Mapping[str, Any]) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        wanted = [one for one in arguments if one is not type(None)]
        fitting = [one for one in wanted if (typing.get_origin(one) is list) == isinstance(value, list)]
        return _value((fitting or wanted)[0], value, name, limits)
    if origin is Literal:
        if value not in arguments or isinstance(value, bool):
            raise UsageError(f"{name}={shown(value)}: choose {' or '.join(map(str, arguments))}")
        return value
    if origin is list:
        if not isinstance(value, list):
            raise UsageError(f"{name}={shown(value)}: need a list")
        _check_limits(len(value), name, limits, " items")
        return [_value(arguments[0], one, f"{name}[{place}]", {}) for place, one in enumerate(value)]
    if dataclasses.is_dataclass(kind):
        return _message(kind, value, name)
    fits = type(value) is kind or (kind is float and type(value) is int)
    if not fits:
        raise UsageError(f"{name}={shown(value)}: need {_KINDS[kind]}")
    if kind is str:
        _check_limits(len(value), name, limits, " characters")
        return value
    if kind in (int, float):
        if not abs(value) < 1e15:  # neither endless nor no number
            raise UsageError(f"{name}={value}: need a number")
        _check_limits(value, name, limits, "")
    return kind(value)


def _check_limits(amount: float, name: str, limits: Mapping[str, Any], unit: str) -> None:
    if amount < limits.get("least", amount):
        raise UsageError(f"{name}: {amount}{unit}, need at least {limits['least']}")
    if amount > limits.get("most", amount):
        raise UsageError(f"{name}: {amount}{unit}, at most {limits['most']} are taken")


def shown(value: Any) -> str:
    """A value that somebody sent, in a message of one line."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…"


def json_schema(kind: Any, components: dict[str, Any]) -> dict[str, Any]:
    """The JSON Schema (2020-12, as OpenAPI 3.1 has it) of a type; those of dataclasses are put into `components`."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return {}
    if origin in (Union, types.UnionType):
        parts = [one for one in arguments if one is not type(None)]
        nothing = [{"type": "null"}] if type(None) in arguments else []
        return {"anyOf": [*(json_schema(one, components) for one in parts), *nothing]}
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin in (list, tuple):
        return {"type": "array", "items": json_schema(arguments[0], components)}
    if origin is dict:
        return {"type": "object", "additionalProperties": json_schema(arguments[1], components)}
    if dataclasses.is_dataclass(kind):
        name = kind.__name__  # type: ignore[union-attr]
        if name not in components:
            components[name] = {}  # so that what holds itself ends
            components[name] = _object(kind, components)
        return {"$ref": f"#/components/schemas/{name}"}
    return {"type": _PLAIN[kind]}


def _object(kind: Any, components: dict[str, Any]) -> dict[str, Any]:
    types_of = typing.get_type_hints(kind)
    properties, required = {}, []
    for one in dataclasses.fields(kind):
        said = json_schema(types_of[one.name], components)
        limits = _limits(types_of[one.name], one.metadata)
        if "$ref" in said and one.metadata:
            said = {"allOf": [said]}
        properties[one.name] = {**said, **limits}
        if "about" in one.metadata:
            properties[one.name]["description"] = one.metadata["about"]
        if "example" in one.metadata:
            properties[one.name]["examples"] = [one.metadata["example"]]
        if one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING:
            required.append(one.name)
        elif one.default is not dataclasses.MISSING and one.default is not None:
            properties[one.name]["default"] = one.default
    about = " ".join((kind.__doc__ or "").split())
    closed = {"required": required} if required else {}
    return {"type": "object", "description": about, "properties": properties, **closed}


def _limits(kind: Any, metadata: Mapping[str, Any]) -> dict[str, Any]:
    parts = [one for one in typing.get_args(kind) if one is not type(None)] or [kind]
    kind = parts[0] if typing.get_origin(kind) in (Union, types.UnionType) else kind
    if typing.get_origin(kind) is list:
        names = "minItems", "maxItems"
    elif kind is str:
        names = "minLength", "maxLength"
    else:
        names = "minimum", "maximum"
    return {name: metadata[key] for name, key in zip(names, ("least", "most"), strict=True) if key in metadata}
