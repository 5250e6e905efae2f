"""Who is evaluated: the transformer, its teacher, the baselines and two references, each once and under one name."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from icrl.algorithms import build
from icrl.config import (
    AlgorithmConfig,
    BernoulliBanditConfig,
    Config,
    ConfigError,
    EnvironmentConfig,
    MixtureComponent,
    MixtureConfig,
    OptimalConfig,
    Problem,
    ThompsonConfig,
    UniformConfig,
    to_dict,
)

Role = Literal["transformer", "teacher", "baseline", "reference"]
"""reference: uniform and optimal, what no learning costs and what nothing beats, evaluated asked for or not."""

TRANSFORMER = "transformer"


@dataclass(frozen=True)
class Entrant:
    """One algorithm of the evaluation."""

    name: str
    role: Role
    algorithm: AlgorithmConfig | None
    """None: the transformer."""


def check(config: Config) -> None:
    """What evaluation cannot do, before any work.

    Raises:
        ConfigError: a regret is expected relative to a teacher that there is not.
        ValueError: an algorithm that cannot play in this environment.
    """
    if config.eval.expect.teacher_ratio is not None and config.teacher() is None:
        raise ConfigError(
            [
                Problem(
                    "eval.expect.teacher_ratio",
                    config.eval.expect.teacher_ratio,
                    "null where the labels do not come from one algorithm alone",
                    "there is no single teacher to compare with: expect eval.expect.uniform_ratio",
                )
            ]
        )
    for algorithm in (config.teacher(), *config.baselines()):
        if algorithm is not None:
            build(algorithm, config.environment)


def line_up(config: Config) -> tuple[Entrant, ...]:
    """The transformer first, then the teacher, the baselines in their order, then references that are not yet there.

    Two configs that play alike are one entrant, under the earlier role. The name is the algorithm's; where several
    configs of one algorithm meet, the keys in which they differ follow it (`linucb-confidence0.5`), and of mixtures
    the components (`mixture-thompson+0.5uniform`).
    """
    teacher = config.teacher()
    wanted: list[tuple[Role, AlgorithmConfig]] = [] if teacher is None else [("teacher", teacher)]
    wanted += [("baseline", algorithm) for algorithm in config.baselines()]
    wanted += [("reference", UniformConfig()), ("reference", OptimalConfig())]
    entrants: dict[AlgorithmConfig, Role] = {}
    for role, algorithm in wanted:
        entrants.setdefault(_canonical(algorithm, config.environment), role)
    named = [Entrant(_name(algorithm, list(entrants)), role, algorithm) for algorithm, role in entrants.items()]
    return (Entrant(TRANSFORMER, "transformer", None), *named)


def _canonical(algorithm: AlgorithmConfig, environment: EnvironmentConfig) -> AlgorithmConfig:
    """The config with what it leaves to the environment filled in, so that configs that play alike are equal."""
    if isinstance(algorithm, ThompsonConfig) and isinstance(environment, BernoulliBanditConfig):
        return ThompsonConfig()  # its Beta posterior has neither variance
    if isinstance(algorithm, ThompsonConfig) and algorithm.noise_variance is None:
        std = getattr(environment, "noise_std", 0.0)
        return dataclasses.replace(algorithm, noise_variance=std**2) if std > 0 else algorithm
    return algorithm


def _name(algorithm: AlgorithmConfig, among: list[AlgorithmConfig]) -> str:
    rivals = [to_dict(other) for other in among if other.algorithm == algorithm.algorithm]
    own = to_dict(algorithm)
    differing = [key for key in own if any(rival[key] != own[key] for rival in rivals)]
    if isinstance(algorithm, MixtureConfig) and differing:
        return f"{algorithm.algorithm}-" + "+".join(_component(component) for component in algorithm.components)
    return "-".join([algorithm.algorithm, *(f"{key}{_text(own[key])}" for key in differing)])


def _component(component: MixtureComponent) -> str:
    """`0.5epsilon_greedy-epsilon0.2`: the weight unless it is 1, and the keys that are not the algorithm's defaults."""
    own, defaults = to_dict(component.algorithm), to_dict(type(component.algorithm)())
    weight = "" if component.weight == 1 else _text(component.weight)
    keys = [f"{key}{_text(value)}" for key, value in own.items() if value != defaults[key]]
    return "-".join([f"{weight}{component.algorithm.algorithm}", *keys])


def _text(value: Any) -> str:
    return str(value).removesuffix(".0")
