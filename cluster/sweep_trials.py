"""The trials of a sweep, all known before the first one starts: number -> overrides -> config -> directory.

A grid is in the order of the file, its last parameter fastest. A draw is a function of (seed, parameter, number of the
draw), so neither another parameter nor a larger run_cap changes the ones before it.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from cluster.sweep_file import VALIDATION_LOSS, Choice, Parameter, SweepFile
from icrl.config import Config, ConfigError, Loaded, Problem, RunConfig, StorageConfig, flatten, identity, load, to_dict
from icrl.config.sources import COMMAND_LINE
from icrl.files import canonical_json, sha256_bytes
from icrl.hparams import short_names
from icrl.mirror import require_no_mirror

_MOST = 100_000
"""Trials of a sweep; more is a mistake in the file."""
_DRAWS_PER_TRIAL = 100
"""How many draws in a row may repeat earlier ones before there seem to be no others."""

Overrides = dict[str, Any]
"""Dotted path -> value."""


@dataclass(frozen=True)
class Trial:
    """One run of a sweep."""

    number: int
    overrides: Overrides
    loaded: Loaded
    """Its config lies in the sweep's directory."""

    @property
    def hash(self) -> str:
        """8 hex digits that stand for what decides its results: the training and the evaluation."""
        config = self.loaded.config
        evaluation = {key: value for key, value in to_dict(config.eval).items() if key != "expect"}
        return sha256_bytes(canonical_json(identity(config) | {"eval": evaluation}))[:8]

    @property
    def name(self) -> str:
        """`0007-<8 hex>`, the name of its directory."""
        return f"{self.number:04d}-{self.hash}"

    def placed(self, number: int, sweep: str) -> Trial:
        """The same trial under a number and in the directory of a sweep (relative to the storage root)."""
        trial = dataclasses.replace(self, number=number)
        config = dataclasses.replace(self.loaded.config, run=RunConfig(f"{sweep}/trials/{trial.name}"))
        return dataclasses.replace(trial, loaded=dataclasses.replace(self.loaded, config=config))


def expand(sweep: SweepFile) -> list[Trial]:
    """Every trial, its config checked; numbered from 0.

    Raises:
        ConfigError: the problems of all trials, each placed where the sweep says what causes it.
    """
    trials: list[Trial] = []
    problems: dict[tuple[str, str], Problem] = {}
    seen: dict[str, Trial] = {}
    for overrides in _assignments(sweep):
        try:
            trial = Trial(len(trials), overrides, _loaded(sweep, overrides))
        except ConfigError as error:
            for problem in error.problems:
                problems.setdefault((problem.path, str(problem.got)), _placed(problem, sweep))
            trials.append(Trial(len(trials), overrides, Loaded(Config(), "", sweep.base, ())))
            continue
        twin = seen.setdefault(trial.hash, trial)
        if twin is not trial and sweep.config.method == "grid":
            problems.setdefault(("", "twin"), _twins(twin, trial, sweep))
        if twin is trial or sweep.config.method == "grid":
            trials.append(trial)
        if sweep.config.run_cap is not None and len(trials) >= sweep.config.run_cap:
            break
    if problems:
        raise ConfigError(list(problems.values()))
    return trials


def directory(sweep: SweepFile, trials: list[Trial]) -> str:
    """Where the sweep lies, relative to the storage root: runs/<name>; a grid without a name is called after itself."""
    if sweep.name:
        return f"runs/{sweep.name}"
    grid = [sorted(p.path for p in sweep.parameters), sorted(trial.hash for trial in trials)]
    return f"runs/{trials[0].loaded.config.name}-grid-{sha256_bytes(canonical_json(grid))[:8]}"


def known_metrics(config: Config) -> list[str]:
    """The tags that a trial of this config reports (`eval.results.metrics` and the validation loss)."""
    from eval.line_up import line_up

    tags = ["eval/regret_final", "eval/regret_se", "eval/suboptimality_final", "eval/uniform_ratio"]
    if config.teacher() is not None:
        tags.append("eval/teacher_ratio")
    if config.dataset.test:
        tags += ["eval/test_log_loss", "eval/agreement"]
    return [*tags, *(f"eval/regret/{entrant.name}" for entrant in line_up(config)), VALIDATION_LOSS]


def check_metric(sweep: SweepFile, trials: list[Trial]) -> None:
    """Refuse a metric that some trial does not report.

    Raises:
        ConfigError: names the metrics there are.
    """
    import difflib

    asked = sweep.config.metric.name
    for trial in trials:
        known = known_metrics(trial.loaded.config)
        if asked not in known:
            near = difflib.get_close_matches(asked, known, n=1)
            remedy = f"did you mean {near[0]}?" if near else ""
            where = sweep.sources.get("metric.name", "")
            raise ConfigError([Problem("metric.name", asked, f"one of {', '.join(known)}", remedy, where)])


def varied(trials: list[Trial]) -> list[str]:
    """The paths that the sweep sets, in the order of the file."""
    return list(dict.fromkeys(path for trial in trials for path in trial.overrides))


def text_of(overrides: Mapping[str, Any]) -> str:
    """Overrides for people: `layers=2 embed_dim=16`, without the sections where the last word tells them apart."""
    names = short_names(list(overrides))
    return " ".join(f"{names[path]}={_spelled(value)}" for path, value in overrides.items())


def _spelled(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _assignments(sweep: SweepFile) -> Iterator[Overrides]:
    """The values of the parameters that have several, trial by trial."""
    parameters = [parameter for parameter in sweep.parameters if not _constant(parameter)]
    if sweep.config.method == "grid":
        choices = [_listed(parameter) for parameter in parameters]
        if math.prod(map(len, choices)) > _MOST:
            where = sweep.sources.get("parameters", "")
            raise ConfigError(
                [Problem("parameters", math.prod(map(len, choices)), f"at most {_MOST} trials", "", where)]
            )
        for values in itertools.product(*choices):
            yield _flat(parameters, values)
        return
    assert sweep.config.run_cap is not None
    for number in range(sweep.config.run_cap * _DRAWS_PER_TRIAL):
        yield _flat(parameters, [_drawn(parameter, sweep.config.ray.seed, number) for parameter in parameters])


def _constant(parameter: Parameter) -> TypeGuard[Choice]:
    return isinstance(parameter, Choice) and len(parameter.values) == 1


def _listed(parameter: Parameter) -> tuple[Any, ...]:
    if isinstance(parameter, Choice):
        return parameter.values
    return tuple(range(int(parameter.low), min(int(parameter.high), int(parameter.low) + _MOST) + 1))


def _drawn(parameter: Parameter, seed: int, number: int) -> Any:
    """The value of one draw."""
    digest = sha256_bytes(canonical_json([seed, parameter.path, number]))
    uniform = int(digest[:13], 16) / 2**52
    if isinstance(parameter, Choice):
        return parameter.values[int(uniform * len(parameter.values))]
    low, high, step = parameter.low, parameter.high, parameter.step
    match parameter.distribution:
        case "int_uniform":
            return int(low) + int(uniform * (int(high) - int(low) + 1))
        case "uniform":
            return low + uniform * (high - low)
        case "log_uniform_values":
            return math.exp(math.log(low) + uniform * (math.log(high) - math.log(low)))
        case "q_uniform":
            value = round((low + uniform * (high - low)) / step) * step
        case "q_log_uniform_values":
            value = round(math.exp(math.log(low) + uniform * (math.log(high) - math.log(low))) / step) * step
    return int(value) if isinstance(step, int) else value


def _flat(parameters: Iterable[Parameter], values: Iterable[Any]) -> Overrides:
    """Parameters with their values, mappings taken apart into the keys they set."""
    result: Overrides = {}
    for parameter, value in zip(parameters, values, strict=True):
        result.update(_leaves(parameter.path, value))
    return result


def _leaves(path: str, value: Any) -> Overrides:
    if not isinstance(value, Mapping):
        return {path: value}
    result: Overrides = {}
    for key, item in value.items():
        result.update(_leaves(f"{path}.{key}", item))
    return result


def _loaded(sweep: SweepFile, overrides: Overrides) -> Loaded:
    # values travel as JSON, which YAML reads back as the same
    constants = [parameter for parameter in sweep.parameters if _constant(parameter)]
    values = _flat(constants, (parameter.values[0] for parameter in constants)) | overrides
    entries = [f"{path}={json.dumps(value, ensure_ascii=False)}" for path, value in values.items()]
    loaded = load(sweep.base, [*sweep.fixed, *entries])
    require_no_mirror(loaded.config, "a sweep, which places its trials itself")
    root = StorageConfig(str(Path(loaded.config.storage.root).expanduser().absolute()))
    return dataclasses.replace(loaded, config=dataclasses.replace(loaded.config, storage=root))


def _placed(problem: Problem, sweep: SweepFile) -> Problem:
    """A trial's problem at the line of the sweep that set the value."""
    if not problem.where.startswith(COMMAND_LINE):
        return problem
    return dataclasses.replace(problem, where=sweep.where(problem.path) or problem.where)


def _twins(first: Trial, second: Trial, sweep: SweepFile) -> Problem:
    return Problem(
        "parameters",
        f"{text_of(first.overrides)} | {text_of(second.overrides)}",
        "trials that differ in what decides their results",
        "list each value once, and vary no key that changes only where or how fast a run works",
        sweep.sources.get("parameters", COMMAND_LINE),
    )


def common(trials: list[Trial]) -> dict[str, Any]:
    """What all trials share: the first one's config without the paths that vary."""
    paths = varied(trials)
    values = flatten(to_dict(trials[0].loaded.config))
    ignored = ("storage.", "run.")
    return {
        key: value
        for key, value in values.items()
        if not key.startswith(ignored) and not any(key == p or key.startswith((f"{p}.", f"{p}[")) for p in paths)
    }
