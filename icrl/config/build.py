"""Plain mappings to sections and back: types, unknown keys and bounds, every problem collected before it raises."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union

from icrl.config.sections import ConfigError, Problem, Section, field_types

S = TypeVar("S", bound=Section)

_MISSING = object()


def build(cls: type[S], values: Mapping[str, Any], path: str = "") -> S:
    """A section of type `cls` from a mapping of plain values.

    Raises:
        ConfigError: with every unknown key, wrong type, violated bound and inconsistency below `path`.
    """
    problems: list[Problem] = []
    section = _section(cls, values, path, problems)
    if problems:
        raise ConfigError(problems)
    return typing.cast(S, section)


def build_one_of(union: Any, values: Mapping[str, Any], path: str = "") -> Any:
    """A section of one of a union's types, told apart by its first key; raises as `build`."""
    problems: list[Problem] = []
    section = _value(union, values, path, problems)
    if problems:
        raise ConfigError(problems)
    return section


def to_dict(section: Section) -> dict[str, Any]:
    """Plain mappings, lists and scalars: the inverse of `build`."""
    result: dict[str, Any] = {}
    for f in dataclasses.fields(typing.cast(Any, section)):
        value = _plain(getattr(section, f.name))
        if f.metadata.get("inline"):
            result.update(value)
        else:
            result[f.name] = value
    return result


def _plain(value: Any) -> Any:
    if isinstance(value, Section):
        return to_dict(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


def documented_fields(cls: type[Section]) -> dict[str, Any]:
    """Field name -> annotation, with the fields of inlined sections beside the section's own."""
    types_of = field_types(cls)
    result: dict[str, Any] = {}
    for f in dataclasses.fields(typing.cast(Any, cls)):
        if not f.metadata.get("inline"):
            result[f.name] = types_of[f.name]
    return result


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _section(cls: type[Any], values: Any, path: str, problems: list[Problem]) -> Any:
    if not isinstance(values, Mapping):
        problems.append(Problem(path, values, f"a mapping with the keys {', '.join(documented_fields(cls))}"))
        return _MISSING
    before = len(problems)
    types_of = field_types(cls)
    fields = dataclasses.fields(cls)
    own = documented_fields(cls)
    inlined = [f for f in fields if f.metadata.get("inline")]
    given = dict(values)
    arguments: dict[str, Any] = {}
    for f in fields:
        if not f.metadata.get("inline") and f.name in given:
            arguments[f.name] = _value(types_of[f.name], given.pop(f.name), _join(path, f.name), problems)
    for f in inlined:
        # what is left belongs to the inlined section, which names the keys it does not know
        arguments[f.name] = _value(types_of[f.name], given, path, problems)
        given = {}
    for key in given:
        problems.append(_unknown(path, str(key), list(own)))
    if len(problems) > before or any(value is _MISSING for value in arguments.values()):
        _check_siblings(cls, arguments, path, problems)
        return _MISSING
    try:
        return cls(**arguments)
    except ConfigError as error:
        problems.extend(dataclasses.replace(p, path=_join(path, p.path)) for p in error.problems)
        return _MISSING


def _check_siblings(cls: type[Any], arguments: dict[str, Any], path: str, problems: list[Problem]) -> None:
    """Bounds of the well-typed fields of a section that cannot be made, so that one run shows every problem."""
    for name, value in arguments.items():
        if value is _MISSING or isinstance(value, Section):
            continue
        try:
            cls(**{name: value})
        except ConfigError as error:
            known = {(p.path, str(p.got)) for p in problems}
            for p in error.problems:
                placed = dataclasses.replace(p, path=_join(path, p.path))
                if p.path == name and (placed.path, str(placed.got)) not in known:
                    problems.append(placed)
        except TypeError:
            return  # the section has a field without a default


def _unknown(path: str, key: str, known: list[str]) -> Problem:
    near = difflib.get_close_matches(key, known, n=1)
    remedy = f"did you mean {_join(path, near[0])}?" if near else ""
    return Problem(_join(path, key), "(unknown key)", f"one of {', '.join(known)}", remedy)


def _value(annotation: Any, value: Any, path: str, problems: list[Problem]) -> Any:
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _value(typing.get_args(annotation)[0], value, path, problems)
    if origin in (Union, types.UnionType):
        return _union(typing.get_args(annotation), value, path, problems)
    if origin is Literal:
        choices = typing.get_args(annotation)
        if any(value == choice and type(value) is type(choice) for choice in choices):
            return value
        near = difflib.get_close_matches(str(value), [str(choice) for choice in choices], n=1)
        expected = "one of " + ", ".join(str(choice) for choice in choices)
        problems.append(Problem(path, value, expected, f"did you mean {near[0]}?" if near else ""))
        return _MISSING
    if origin is tuple:
        if not isinstance(value, list | tuple):
            problems.append(Problem(path, value, "a list"))
            return _MISSING
        item = typing.get_args(annotation)[0]
        items = tuple(_value(item, entry, f"{path}[{i}]", problems) for i, entry in enumerate(value))
        return _MISSING if any(entry is _MISSING for entry in items) else items
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return _section(annotation, value, path, problems)
    return _scalar(annotation, value, path, problems)


def _scalar(annotation: Any, value: Any, path: str, problems: list[Problem]) -> Any:
    if annotation is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, bool) and annotation is not bool:
        pass  # `yes` is not a number, nor a name
    elif isinstance(value, annotation):
        return value
    elif annotation is int and isinstance(value, float) and value.is_integer():
        return int(value)  # 1e6 is a float to YAML
    name = {int: "an integer", float: "a number", str: "a text", bool: "true or false"}[annotation]
    remedy = ""
    if isinstance(value, str) and "," in value and annotation in (int, float):
        remedy = "several values are a sweep: python -m cluster sweep"
    problems.append(Problem(path, value, name, remedy))
    return _MISSING


def _union(members: tuple[Any, ...], value: Any, path: str, problems: list[Problem]) -> Any:
    sections = [m for m in members if isinstance(m, type) and issubclass(m, Section)]
    if value is None and type(None) in members:
        return None
    if sections:
        return _tagged(sections, value, path, problems)
    attempts: list[list[Problem]] = []
    for member in members:
        if member is type(None):
            continue
        tried: list[Problem] = []
        result = _value(member, value, path, tried)
        if result is not _MISSING:
            return result
        attempts.append(tried)
    expected = " or ".join(dict.fromkeys(tried[0].expected.removeprefix("one of ") for tried in attempts))
    if type(None) in members:
        expected += " or null"
    remedy = next((tried[0].remedy for tried in attempts if tried[0].remedy), "")
    problems.append(Problem(path, value, expected, remedy))
    return _MISSING


def _tagged(sections: list[type[Any]], value: Any, path: str, problems: list[Problem]) -> Any:
    """One of several sections, told apart by the literal of their first field; a bare name takes its defaults."""
    tag = dataclasses.fields(sections[0])[0].name
    by_name = {typing.get_args(field_types(section)[tag])[0]: section for section in sections}
    if isinstance(value, str):
        value = {tag: value}
    if not isinstance(value, Mapping):
        problems.append(Problem(path, value, f"a mapping with the key {tag}, or one of {', '.join(by_name)}"))
        return _MISSING
    name = value.get(tag)
    if name is None and sections[0].implied:
        name = typing.get_args(field_types(sections[0])[tag])[0]
    if name not in by_name:
        near = difflib.get_close_matches(str(name), list(by_name), n=1)
        got = "(missing)" if name is None else name
        remedy = f"did you mean {near[0]}?" if near else ""
        problems.append(Problem(_join(path, tag), got, "one of " + ", ".join(by_name), remedy))
        return _MISSING
    return _section(by_name[name], value, path, problems)
