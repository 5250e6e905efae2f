"""Which algorithm and which array make no sense in an environment, though each is right by itself."""

from __future__ import annotations

from collections.abc import Iterator

from icrl.config.algorithms import (
    AlgorithmConfig,
    EmpiricalMeanConfig,
    EpsilonGreedyConfig,
    MixtureConfig,
    PSRLConfig,
    ThompsonConfig,
    UCBConfig,
)
from icrl.config.environments import (
    EnvironmentConfig,
    GaussianBanditConfig,
    GridWorldConfig,
    LinearBanditConfig,
    TabularMDPConfig,
)
from icrl.config.sections import Problem


def fresh_actions(environment: EnvironmentConfig) -> bool:
    """Whether an action's number means another action in every round."""
    return isinstance(environment, LinearBanditConfig) and environment.action_set == "fresh"


def algorithm_misfits(path: str, algorithm: AlgorithmConfig, environment: EnvironmentConfig) -> Iterator[Problem]:
    """Why an algorithm whose kind of environment this is cannot play in it all the same; `path` names the algorithm."""
    if isinstance(algorithm, MixtureConfig):
        for i, component in enumerate(algorithm.components):
            yield from algorithm_misfits(f"{path}.components[{i}]", component.algorithm, environment)
    if fresh_actions(environment) and isinstance(algorithm, EmpiricalMeanConfig | EpsilonGreedyConfig | UCBConfig):
        yield Problem(
            f"{path}.algorithm",
            algorithm.algorithm,
            "uniform, optimal, linucb or thompson with environment.action_set = fresh: the mean reward of an action's "
            "number says nothing when the action changes every round",
            "or set environment.action_set=fixed",
        )
    if isinstance(algorithm, PSRLConfig) and isinstance(environment, TabularMDPConfig | GridWorldConfig):
        numbers = algorithm.numbers(environment)
        if numbers > 2**32:
            expected = f"an MDP for which {numbers} random numbers are at most {2**32}"
            yield Problem(f"{path}.algorithm", "psrl", expected, "lower environment.episodes or its states")
    if isinstance(algorithm, ThompsonConfig) and algorithm.noise_variance is None:
        lacking = _without_variance(environment)
        if lacking:
            yield Problem(
                f"{path}.noise_variance", None, f"a positive noise_variance where {lacking[0]}", f"set it, {lacking[1]}"
            )


def _without_variance(environment: EnvironmentConfig) -> tuple[str, str] | None:
    """Why Thompson sampling finds no variance of the noise in the environment, and what to do; None: it does."""
    if isinstance(environment, LinearBanditConfig) and environment.noise == "bernoulli":
        return (
            "environment.noise = bernoulli has none of its own",
            "for example to 0.25, the most a reward of 0 or 1 has",
        )
    if isinstance(environment, LinearBanditConfig | GaussianBanditConfig) and environment.noise_std == 0:
        return "environment.noise_std = 0", "for example to 0.01"
    return None


def array_misfits(path: str, names: tuple[str, ...], environment: EnvironmentConfig) -> Iterator[Problem]:
    """Why these arrays cannot be stored; `path` names the option."""
    changing = [name for name in names if name in {"action_set", "means"}]
    if changing and fresh_actions(environment):
        yield Problem(
            path,
            list(names),
            f"no {' and no '.join(changing)} with environment.action_set = fresh: T action sets a trajectory are "
            "regenerated, never stored",
            "take [theta] or []",
        )
