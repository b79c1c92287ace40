"""YAML into strict dataclasses: a key that there is not is an error, and nothing of a file is run."""

import re
from dataclasses import is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import yaml

from perceiver_vl.utils.errors import UsageError
from perceiver_vl.utils.text import did_you_mean

Parsed = TypeVar("Parsed")
# What jsonargparse says of a value: our own reasons in a list of why it is none of several kinds; or its key, below
# those of the sections that it is in, then which kinds it may be of, and the value
_REASON = re.compile(r"(?m)^\s+- (?!Expected |Does not validate|Problem with |Not of type )(.+)$")
_KEY = re.compile(r'(?m)^( *)Parser key "([^"]+)":')
_KIND = re.compile(r"(?:Expected (?:a )?<class '(?:\w+\.)*|Not of type )(\w+)|Expected a typing\.Literal\[(.+?)\]")
_VALUE = re.compile(r"(?:Got|Given) value: (.*)")
_IN_YAML = {"int": "a whole number", "float": "a number", "str": "text", "bool": "true or false", "NoneType": "null"}
_IN_YAML |= {"tuple": "a list", "list": "a list", "dict": "a mapping", "Path": "a path"}


def parse(kind: type[Parsed], values: Any, where: str) -> Parsed:
    """A dataclass from what YAML holds; raises `UsageError`, which says where, for what does not fit it."""
    if not isinstance(values, dict):
        raise UsageError(f"{where}: a {type(values).__name__}, need a mapping")
    _refuse_unknown(kind, values, where)
    _refuse_names_of_code(kind, values, where)
    _refuse_class_paths(values, where)
    parser = parser_of(kind)  # type: ignore[arg-type]
    try:
        return kind(**vars(parser.instantiate_classes(parser.parse_object(values))))
    except UsageError:
        raise
    except Exception as error:  # jsonargparse raises its own kinds, and what our dataclasses raise inside them
        reasons = "; ".join(_REASON.findall(str(error)))
        raise UsageError(f"{where}: {reasons or _of_another_kind(str(error)) or one_line(error)}") from error


@cache
def parser_of(kind: type) -> Any:
    """jsonargparse's parser of a dataclass's fields, made once: that takes longer than to parse."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, as_positional=False)
    return parser


def _of_another_kind(said: str) -> str | None:
    """Which value is not of which kinds; None where that is not what was said."""
    path: list[tuple[int, str]] = []
    after = 0
    for key in _KEY.finditer(said):
        path = [one for one in path if one[0] < len(key[1])] + [(len(key[1]), key[2])]
        after = key.end()
    value = _VALUE.search(said, after)
    if not path or value is None:
        return None
    kinds = dict.fromkeys(_IN_YAML.get(one, one) or choices for one, choices in _KIND.findall(said, after, value.end()))
    if not kinds:
        return None
    return f"{'.'.join(name for _, name in path)}={value[1]}: need {' or '.join(kinds)}"


def _refuse_unknown(kind: Any, values: dict[str, Any], where: str, section: str = "") -> None:
    """Keys that there are not, in the sections too, with the nearest that there is."""
    hints = get_type_hints(kind)
    for name, value in values.items():
        if name not in hints:
            raise UsageError(f"{where}: {section}{name}: unknown key, {did_you_mean(str(name), hints)}")
        if value is None and is_dataclass(hints[name]):
            raise UsageError(f"{where}: {section}{name}=null: need a mapping, or leave it out")
        for inner in (part for part in (hints[name], *get_args(hints[name])) if is_dataclass(part)):
            for one in value if isinstance(value, list) else [value]:
                if isinstance(one, dict):
                    _refuse_unknown(inner, one, where, f"{section}{name}.")


def _refuse_names_of_code(kind: Any, values: dict[str, Any], where: str) -> None:
    """A recipe is data: of a string in a section's place jsonargparse would import the module that it names."""
    for name, hint in get_type_hints(kind).items():
        for section in (part for part in (hint, *get_args(hint)) if is_dataclass(part)):
            if isinstance(values.get(name), str):
                raise UsageError(f"{where}: {name}={values[name]!r}: need a mapping")
            if isinstance(values.get(name), dict):
                _refuse_names_of_code(section, values[name], where)


def _refuse_class_paths(value: Any, where: str) -> None:
    """And of a mapping with `class_path`, it would make the class."""
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        if key == "class_path":
            raise UsageError(f"{where}: class_path={item!r}: a recipe names no code, leave it out")
        _refuse_class_paths(item, where)


class RecipeLoader(yaml.SafeLoader):
    """YAML in which 1e-5 is a number, as in YAML 1.2; PyYAML's 1.1 wants 1.0e-5."""


_EXPONENT = re.compile(r"[-+]?\d+[eE][-+]?\d+$")
RecipeLoader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+0123456789"))


def set_at(values: dict[str, Any], dotted: str, value: Any) -> None:
    """Put a value at its dotted place in nested mappings and lists, which are made where they are not there."""
    *parents, last = dotted.split(".")
    at: Any = values
    for parent in parents:
        at = _only(at, parent)
        below = at[_place(at, parent, dotted)] if isinstance(at, list) else at.get(parent)
        if not isinstance(below, dict | list):
            below = at[parent] = {}
        at = below
    at = _only(at, last)
    at[_place(at, last, dotted) if isinstance(at, list) else last] = value


def _only(at: Any, word: str) -> Any:
    """The one source of a list, where a word that is no place says of which nothing."""
    return at[0] if isinstance(at, list) and len(at) == 1 and not word.isdecimal() else at


def _place(values: list[Any], word: str, dotted: str) -> int:
    if not (word.isdecimal() and int(word) < len(values)):
        raise UsageError(f"override {dotted}: {word} is no place in a list of {len(values)}, counted from 0")
    return int(word)


def one_line(error: Exception) -> str:
    """What an error says, without the breaks between its lines."""
    return " ".join(str(error).split())


def as_plain(value: Any) -> Any:
    """Values as YAML knows them."""
    if isinstance(value, dict):
        return {key: as_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
