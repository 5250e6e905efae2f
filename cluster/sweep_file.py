"""A sweep as written: W&B's sweep grammar in YAML, with two keys of ours (`base`, `ray`), or a grid on a command line.

What cannot be is refused at once, every problem with its `file:line`. Imports nothing heavy.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from icrl.config import (
    NAME_PATTERN,
    Above,
    AtLeast,
    ConfigError,
    Count,
    Positive,
    PositiveInt,
    Problem,
    Section,
    Seed,
    build,
)
from icrl.config.sources import COMMAND_LINE, config_root, parse_value, placed, read_yaml

VALIDATION_LOSS = "train/validation_loss"

Distribution = Literal["uniform", "int_uniform", "q_uniform", "log_uniform_values", "q_log_uniform_values"]
_DISTRIBUTIONS = ("constant", "categorical", *Distribution.__args__)  # type: ignore[attr-defined]
_SPEC_KEYS = ("value", "values", "min", "max", "distribution", "q", "parameters")
_NOT_SWEPT = ("storage", "run", "name")
"""Where a trial lies and what it is called is the sweep's to say."""


@dataclass(frozen=True)
class MetricConfig(Section):
    """What a sweep ranks its trials by."""

    name: str = "eval/test_log_loss"
    """A tag of an evaluation, or train/validation_loss."""
    goal: Literal["minimize", "maximize"] = "minimize"


@dataclass(frozen=True)
class HyperbandConfig(Section):
    """Stops trials early by asynchronous successive halving (ASHA) on the validation loss; iterations are steps."""

    type: Literal["hyperband"] = "hyperband"
    min_iter: PositiveInt | None = None
    """Steps before the first comparison."""
    max_iter: PositiveInt | None = None
    """In place of min_iter: the first comparison is after max_iter / eta^s steps."""
    s: PositiveInt | None = None
    eta: Annotated[float, Above(1)] = 3.0
    """Of eta trials that reach a comparison one goes on; comparisons lie a factor eta apart."""

    def problems(self) -> Iterator[Problem]:
        if (self.min_iter is None) == (self.max_iter is None):
            yield Problem("min_iter", self.min_iter, "either min_iter, or max_iter with s")
        if (self.max_iter is None) != (self.s is None):
            yield Problem("s", self.s, "max_iter and s together")

    @property
    def first(self) -> int:
        """The step of the first comparison."""
        if self.min_iter is not None:
            return self.min_iter
        assert self.max_iter is not None
        assert self.s is not None
        return max(1, round(self.max_iter / self.eta**self.s))


@dataclass(frozen=True)
class ResourcesConfig(Section):
    """What Ray reserves for the training of one trial, divided evenly over its workers."""

    CPU: Positive | None = None
    """null: train.threads for each worker."""
    GPU: Annotated[float, AtLeast(0)] | None = None
    """null: one for each worker where there are GPUs."""


@dataclass(frozen=True)
class RayConfig(Section):
    """What W&B's grammar has no word for."""

    max_concurrent: PositiveInt | Literal["auto"] = "auto"
    """Trials at a time; auto: as many as the cluster has CPUs and GPUs for."""
    resources_per_trial: ResourcesConfig = ResourcesConfig()
    max_failures: Count = 3
    """How often a trial is started again after its process died."""
    seed: Seed = 0
    """Key of the draws of method random."""


@dataclass(frozen=True)
class SweepConfig(Section):
    """The keys of a sweep file, but for its parameters."""

    name: str | None = None
    """null: the name of the file. The sweep lies in runs/<name>."""
    description: str = ""
    base: str = ""
    """The experiment that the trials vary: a file under configs/."""
    method: Literal["grid", "random"] = "grid"
    metric: MetricConfig = MetricConfig()
    run_cap: PositiveInt | None = None
    """Largest number of trials; needed by method random."""
    early_terminate: HyperbandConfig | None = None
    ray: RayConfig = RayConfig()

    def problems(self) -> Iterator[Problem]:
        if self.name is not None and not NAME_PATTERN.fullmatch(self.name):
            yield Problem("name", self.name, "lower-case letters, digits, '.', '_' and '-'")
        if self.method == "random" and self.run_cap is None:
            yield Problem("run_cap", None, "the number of trials to draw", "method random has no end of its own")


@dataclass(frozen=True)
class Choice:
    """A parameter with listed values; a value that is a mapping sets several keys at once."""

    path: str
    values: tuple[Any, ...]


@dataclass(frozen=True)
class Range:
    """A parameter drawn between two bounds."""

    path: str
    distribution: Distribution
    low: float
    high: float
    step: float = 1.0
    """Of the q_ distributions."""


Parameter = Choice | Range


@dataclass(frozen=True)
class SweepFile:
    """A sweep as written, checked as far as it can be without the experiment it varies."""

    config: SweepConfig
    name: str
    base: Path
    parameters: tuple[Parameter, ...]
    fixed: tuple[str, ...]
    """Overrides of every trial."""
    sources: Mapping[str, str]
    """`parameters.<path>` -> `file:line`."""

    def where(self, path: str) -> str:
        """Where the parameter that sets this path of the config was written; empty for a path that none sets."""
        owners = [p.path for p in self.parameters if f"{path}.".startswith(f"{p.path}.") or path == p.path]
        if not owners:
            owners = [p.path for p in self.parameters if p.path.startswith((f"{path}.", f"{path}["))]
        return placed(Problem(f"parameters.{owners[0]}", "", ""), dict(self.sources)).where if owners else ""


def is_sweep(path: Path) -> bool:
    """Whether a YAML file is a sweep rather than an experiment."""
    values, _ = read_yaml(path)
    return bool({"parameters", "method", "base"} & values.keys())


def read_sweep(path: Path, fixed: Sequence[str] = ()) -> SweepFile:
    """Read a sweep file; `fixed` are `key=value` overrides of every trial.

    Raises:
        ConfigError: with every problem of the file.
    """
    values, marks = read_yaml(path)
    problems: list[Problem] = []
    parameters = _parameters(values.pop("parameters", None), "parameters", "", problems)
    config = SweepConfig()
    try:
        config = build(SweepConfig, values)
    except ConfigError as error:
        problems += error.problems
    root = config_root(path)
    base = root / f"{config.base.removesuffix('.yaml')}.yaml"
    if not problems and not (config.base and base.is_file()):
        names = sorted(str(p.relative_to(root).with_suffix("")) for p in root.rglob("*.yaml"))
        near = difflib.get_close_matches(config.base, names, n=1)
        remedy = f"did you mean {near[0]}?" if near else ""
        problems.append(Problem("base", config.base or None, f"an experiment: a file under {root}", remedy))
    problems += _contradictions(config, parameters, fixed)
    if problems:
        raise ConfigError([placed(problem, {"": str(path)} | marks) for problem in problems])
    name = config.name or path.stem.lower()
    return SweepFile(config, name, base, tuple(parameters), tuple(fixed), marks)


def quick_grid(base: Path, overrides: Sequence[str]) -> SweepFile:
    """The grid of an experiment and overrides with several values: `model.embed_dim=16,32 seed=0,1`.

    Raises:
        ConfigError: no override has several values.
    """
    fixed: list[str] = []
    parameters: list[Parameter] = []
    sources: dict[str, str] = {}
    for override in overrides:
        key, _, text = override.removeprefix("--").partition("=")
        values = split_values(text)
        if len(values) == 1:
            fixed.append(override)
            continue
        parameters.append(Choice(key, tuple(parse_value(value) for value in values)))
        sources[f"parameters.{key}"] = f"{COMMAND_LINE} ({override})"
    problems = list(_contradictions(SweepConfig(), parameters, fixed))
    if not parameters:
        remedy = "for example seed=0,1; one run is: python -m cluster run"
        problems.append(Problem("key=value", " ".join(overrides), "at least one key with several values", remedy))
    if problems:
        raise ConfigError([placed(problem, {"": COMMAND_LINE} | sources) for problem in problems])
    return SweepFile(SweepConfig(), "", base, tuple(parameters), tuple(fixed), sources)


def split_values(text: str) -> list[str]:
    """The parts of a value between commas that stand in no bracket and no quotation."""
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        else:
            depth += (character in "[{(") - (character in "]})")
        if character == "," and depth == 0 and not quote:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def _parameters(specs: Any, place: str, prefix: str, problems: list[Problem]) -> list[Parameter]:
    if not isinstance(specs, Mapping) or not specs:
        remedy = "an empty grid has no trials; one run is: python -m cluster run"
        problems.append(Problem(place, specs, "parameter paths with their values", remedy))
        return []
    found: list[Parameter] = []
    for key, spec in specs.items():
        path, where = f"{prefix}{key}", f"{place}.{key}"
        if not isinstance(spec, Mapping):
            problems.append(Problem(where, spec, f"a mapping with one of {', '.join(_SPEC_KEYS)}"))
            continue
        unknown = [str(name) for name in spec if name not in _SPEC_KEYS]
        for name in unknown:
            near = difflib.get_close_matches(name, _SPEC_KEYS, n=1)
            remedy = f"did you mean {near[0]}?" if near else ""
            problems.append(Problem(f"{where}.{name}", "(unknown key)", f"one of {', '.join(_SPEC_KEYS)}", remedy))
        if unknown:
            continue
        if "parameters" in spec:
            found += _parameters(spec["parameters"], f"{where}.parameters", f"{path}.", problems)
        elif (parameter := _parameter(path, where, spec, problems)) is not None:
            found.append(parameter)
    return found


def _parameter(path: str, where: str, spec: Mapping[str, Any], problems: list[Problem]) -> Parameter | None:
    kinds = [name for name in ("value", "values", "min") if name in spec]
    if len(kinds) != 1 or ("min" in spec) != ("max" in spec):
        problems.append(Problem(where, dict(spec), "either value, values, or min with max"))
        return None
    distribution = spec.get("distribution")
    if distribution is not None and distribution not in _DISTRIBUTIONS:
        near = difflib.get_close_matches(str(distribution), _DISTRIBUTIONS, n=1)
        remedy = f"did you mean {near[0]}?" if near else ""
        expected = f"one of {', '.join(_DISTRIBUTIONS)}"
        problems.append(Problem(f"{where}.distribution", distribution, expected, remedy))
        return None
    if "value" in spec:
        return Choice(path, (spec["value"],))
    if "values" in spec:
        values = spec["values"]
        if not isinstance(values, list) or not values:
            problems.append(Problem(f"{where}.values", values, "a list with at least one value"))
            return None
        return Choice(path, tuple(values))
    return _range(path, where, spec, problems)


def _range(path: str, where: str, spec: Mapping[str, Any], problems: list[Problem]) -> Range | None:
    low, high = spec["min"], spec["max"]
    before = len(problems)
    for name, value in (("min", low), ("max", high), ("q", spec.get("q", 1))):
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not number or (name == "q" and value <= 0):
            problems.append(Problem(f"{where}.{name}", value, "a number above 0" if name == "q" else "a number"))
    if len(problems) > before:
        return None
    integers = isinstance(low, int) and isinstance(high, int)
    distribution: Any = spec.get("distribution") or ("int_uniform" if integers else "uniform")
    if distribution in ("constant", "categorical"):
        problems.append(Problem(f"{where}.distribution", distribution, "value or values beside it, not min and max"))
    elif low >= high:
        problems.append(Problem(f"{where}.max", high, f"above min ({low})"))
    elif "log" in distribution and low <= 0:
        problems.append(Problem(f"{where}.min", low, f"above 0 with {distribution}"))
    elif distribution == "int_uniform" and not integers:
        problems.append(Problem(f"{where}.min", low, "integers with int_uniform"))
    else:
        return Range(path, distribution, low, high, spec.get("q", 1))
    return None


def _contradictions(config: SweepConfig, parameters: Sequence[Parameter], fixed: Sequence[str]) -> Iterator[Problem]:
    paths = [parameter.path for parameter in parameters]
    for parameter in parameters:
        path, where = parameter.path, f"parameters.{parameter.path}"
        if path.split(".")[0] in _NOT_SWEPT:
            yield Problem(where, "(parameter)", "a key that changes a result", "the sweep places and names its trials")
        if isinstance(parameter, Range) and config.method == "grid" and parameter.distribution != "int_uniform":
            yield Problem(where, parameter.distribution, "value or values with method grid", "or take method: random")
        if isinstance(parameter, Choice):
            for value in parameter.values:
                if isinstance(value, Mapping) and not value:
                    yield Problem(where, value, "mappings of keys to values")
        if paths.count(path) > 1:
            yield Problem(where, "(twice)", "each parameter once")
    for override in fixed:
        key, _, text = override.removeprefix("--").partition("=")
        if key in paths:
            yield Problem(f"parameters.{key}", override, "no override of a parameter", "change its values in the file")
        if len(split_values(text)) > 1:
            yield Problem(key, text, "one value beside a sweep file", "list several under parameters")


def without_ours(values: Mapping[str, Any]) -> dict[str, Any]:
    """A sweep file's values in W&B's grammar alone."""
    return {key: value for key, value in values.items() if key not in ("base", "ray")}


def shown(config: SweepConfig) -> dict[str, Any]:
    """The keys that decide which trials there are and how they are ranked."""
    return {
        "method": config.method,
        "metric": dataclasses.asdict(config.metric),
        "early_terminate": config.early_terminate and dataclasses.asdict(config.early_terminate),
        "seed": config.ray.seed,
    }
