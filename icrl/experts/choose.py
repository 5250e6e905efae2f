"""Which reduced expert belongs to a config, and why there may be none."""

from __future__ import annotations

from dataclasses import dataclass

from icrl import algorithms
from icrl.algorithms import Algorithm
from icrl.config import (
    AlgorithmConfig,
    BernoulliBanditConfig,
    Config,
    ContextComponent,
    EnvironmentConfig,
    GaussianBanditConfig,
    GridWorldConfig,
    LinearBanditConfig,
    MixtureConfig,
    OptimalConfig,
    ThompsonConfig,
)
from icrl.experts.posterior import not_conjugate
from icrl.experts.reduced import (
    BernoulliPosterior,
    BoxPosterior,
    DarkRoomPosterior,
    GaussianPosterior,
    TrajectoryMixture,
)


@dataclass(frozen=True)
class ReducedExpert:
    """The reduced expert of a config."""

    algorithm: Algorithm | None
    """None: it has no form that can be computed here."""
    reason: str
    """What it is and how exact, or why there is none."""


def reduced_expert(config: Config) -> ReducedExpert:
    """Of the config's label, under its context and prior.

    Raises:
        ValueError: an algorithm of the context cannot play in the environment.
    """
    if any(sees_environment(component.algorithm) for component in played(config.context)):
        return ReducedExpert(None, "the context sees the environment: what it plays gives the best action away")
    match config.expert.label:
        case "distillation":
            return _distillation(config)
        case "optimal":
            return posterior_sampling(config.environment)
        case _:
            return ReducedExpert(
                None, "that of approximate DPT is an average over the rest of the trajectory, not in closed form"
            )


def context_algorithm(config: Config) -> Algorithm:
    """Alg_0 as one algorithm: the component itself, or the mixture of several over whole trajectories.

    A component that is posterior sampling is `posterior_sampling`, whose probabilities are as exact or exacter.
    """
    every = played(config.context)
    built = [_build(component.algorithm, config.environment) for component in every]
    return built[0] if len(built) == 1 else TrajectoryMixture(built, [component.weight for component in every])


def posterior_sampling(environment: EnvironmentConfig) -> ReducedExpert:
    """P(a*_t | D_{t-1}, s_t), the reduced expert of DPT under any context that does not see the environment."""
    match environment:
        case BernoulliBanditConfig():
            return ReducedExpert(BernoulliPosterior(environment), "Beta posterior, exact by quadrature")
        case GaussianBanditConfig():
            if environment.noise_std == 0:
                return ReducedExpert(None, "the rewards have no noise")
            return ReducedExpert(GaussianPosterior(environment), "Gaussian posterior, exact by quadrature")
        case LinearBanditConfig():
            if reason := not_conjugate(environment):
                return ReducedExpert(None, reason)
            if environment.prior == "unit_box":
                box = BoxPosterior(environment)
                return ReducedExpert(box, f"Gaussian posterior cut off at the box, {box.samples} importance samples")
            exact = algorithms.build(ThompsonConfig(prior_variance=1.0), environment)
            return ReducedExpert(exact, "Gaussian posterior, by Monte Carlo")
        case GridWorldConfig():
            return ReducedExpert(DarkRoomPosterior(environment), "posterior of the goal, exact by enumeration")
        case _:
            return ReducedExpert(None, "the posterior of the best action of a tabular MDP has no closed form")


def is_posterior_sampling(algorithm: AlgorithmConfig, environment: EnvironmentConfig) -> bool:
    """Whether an algorithm of a context is the reduced expert of DPT itself."""
    if not isinstance(algorithm, ThompsonConfig):
        return False
    if isinstance(environment, BernoulliBanditConfig):
        return True
    if isinstance(environment, GaussianBanditConfig):
        prior, noise = environment.prior_std**2, environment.noise_std**2
    elif isinstance(environment, LinearBanditConfig) and environment.prior == "gaussian":
        prior, noise = 1.0, environment.noise_std**2
        if environment.noise != "gaussian":
            return False
    else:
        return False
    return algorithm.prior_variance == prior and algorithm.noise_variance in (None, noise)


def sees_environment(algorithm: AlgorithmConfig) -> bool:
    """Whether an algorithm may look at the environment itself."""
    if isinstance(algorithm, MixtureConfig):
        return any(sees_environment(part.algorithm) for part in algorithm.components if part.weight > 0)
    return isinstance(algorithm, OptimalConfig)


def played(context: tuple[ContextComponent, ...]) -> list[ContextComponent]:
    """The components that are ever drawn."""
    return [component for component in context if component.weight > 0]


def _build(algorithm: AlgorithmConfig, environment: EnvironmentConfig) -> Algorithm:
    if is_posterior_sampling(algorithm, environment):
        exact = posterior_sampling(environment).algorithm
        if exact is not None:
            return exact
    return algorithms.build(algorithm, environment)


def _distillation(config: Config) -> ReducedExpert:
    algorithm = context_algorithm(config)
    if isinstance(algorithm, TrajectoryMixture):
        return ReducedExpert(algorithm, "the context's components, weighted by their posterior")
    return ReducedExpert(algorithm, "the context's algorithm")
