"""What a section of a config is: bounds in annotations, problems with a place and a remedy.

A section checks itself when it is made: `Section.__post_init__` applies the bounds written in the annotations and the
section's own `problems()`, and raises one `ConfigError` that holds them all.
"""

from __future__ import annotations

import dataclasses
import math
import re
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

_USER_AND_PASSWORD = re.compile(r"://[^/\s]*@")
"""Of a URL: not to be repeated in a message."""


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a config: where (dotted path), what was given, what is expected, how to mend it."""

    path: str
    got: object
    expected: str
    remedy: str = ""
    where: str = ""
    """`file:line`, or "command line"; filled in by the loader."""

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        remedy = f"; {self.remedy}" if self.remedy else ""
        text = f"{place}{self.path or 'config'} = {self.got!r}: expected {self.expected}{remedy}"
        return without_credentials(text)


def without_credentials(text: str) -> str:
    """A text, without the user and password of URLs in it."""
    return _USER_AND_PASSWORD.sub("://...@", text)


class ConfigError(ValueError):
    """Every problem of a config at once."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = problems
        super().__init__("\n".join(str(problem) for problem in problems))


@dataclass(frozen=True)
class AtLeast:
    """Lower bound, inclusive, written in an annotation."""

    bound: float

    def violated(self, value: float) -> str | None:
        return None if value >= self.bound else f"at least {self.bound:g}"


@dataclass(frozen=True)
class Above:
    """Lower bound, exclusive, written in an annotation."""

    bound: float

    def violated(self, value: float) -> str | None:
        return None if value > self.bound else f"above {self.bound:g}"


@dataclass(frozen=True)
class AtMost:
    """Upper bound, inclusive, written in an annotation."""

    bound: float

    def violated(self, value: float) -> str | None:
        return None if value <= self.bound else f"at most {self.bound:g}"


PositiveInt = Annotated[int, AtLeast(1)]
Count = Annotated[int, AtLeast(0)]
Positive = Annotated[float, Above(0)]
NonNegative = Annotated[float, AtLeast(0)]
Trajectories = Annotated[int, AtLeast(1), AtMost(10**10)]
Size = Annotated[int, AtLeast(1), AtMost(2**16)]
Seed = Annotated[int, AtLeast(0), AtMost(2**63 - 1)]


def field_types(cls: Any) -> dict[str, Any]:
    """Resolved annotations of a section, with their bounds."""
    return typing.get_type_hints(cls, include_extras=True)


def _bounds(annotation: Any) -> tuple[Any, ...]:
    if typing.get_origin(annotation) is Annotated:
        return typing.get_args(annotation)[1:]
    return tuple(bound for arg in typing.get_args(annotation) for bound in _bounds(arg))


class Section:
    """Base of every section: checks bounds and `problems()` when it is made."""

    implied: ClassVar[bool] = False
    """Of the first of several sections told apart by a name: whether it is meant where none is given."""

    def __post_init__(self) -> None:
        found: list[Problem] = []
        for f in dataclasses.fields(typing.cast(Any, self)):
            value = getattr(self, f.name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            if not math.isfinite(value):
                found.append(Problem(f.name, value, "a finite number"))
                continue
            for bound in _bounds(field_types(type(self))[f.name]):
                if expected := bound.violated(value):
                    found.append(Problem(f.name, value, expected))
        if not found:
            found.extend(self.problems())
        if found:
            raise ConfigError(found)

    def problems(self) -> Iterator[Problem]:
        """What the bounds cannot say; paths are relative to this section."""
        yield from ()
