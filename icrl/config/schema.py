"""The stages of a config: one frozen dataclass a section, defaults and documentation at the field."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from icrl.config.algorithms import (
    BANDITS,
    AlgorithmConfig,
    ContextComponent,
    EmpiricalMeanConfig,
    EpsilonGreedyConfig,
    LinUCBConfig,
    OptimalConfig,
    PlainAlgorithmConfig,
    PSRLConfig,
    ThompsonConfig,
    UCBConfig,
    UCBVIConfig,
    UniformConfig,
)
from icrl.config.environments import EnvironmentConfig, LinearBanditConfig
from icrl.config.misfits import algorithm_misfits, array_misfits
from icrl.config.places import directory_problems, place_problems
from icrl.config.sections import (
    AtLeast,
    AtMost,
    Count,
    Positive,
    Problem,
    Section,
    Seed,
    Size,
    Trajectories,
)
from icrl.config.training import TrainConfig


@dataclass(frozen=True)
class StorageConfig(Section):
    """Where data and runs lie."""

    root: str = "."
    """Everything relative lies under it."""

    def problems(self) -> Iterator[Problem]:
        yield from directory_problems("root", self.root)


@dataclass(frozen=True)
class ExpertConfig(Section):
    """Alg_E, which labels the trajectories."""

    label: Literal["distillation", "optimal", "approximate"] = "distillation"
    """distillation: the context's own action (algorithm distillation); optimal: the environment's best action (DPT);
    approximate: the best action as estimated from the whole trajectory (approximate DPT)."""
    estimator: Literal["empirical_mean", "posterior_mean", "posterior_sample"] | None = None
    """How `approximate` estimates it. empirical_mean: the best mean reward among the actions that were played;
    posterior_mean: the best posterior mean of the reward; posterior_sample: best in an environment drawn from the
    posterior. null: empirical_mean."""

    @property
    def estimates_by(self) -> str:
        """The estimator of `approximate`."""
        return self.estimator or "empirical_mean"

    def problems(self) -> Iterator[Problem]:
        if self.estimator is not None and self.label != "approximate":
            yield Problem("estimator", self.estimator, f"null with label {self.label}", "set expert.label=approximate")


@dataclass(frozen=True)
class DatasetConfig(Section):
    """Trajectories of the context, on disk or regenerated."""

    path: str | None = None
    """Directory of the dataset, or s3://bucket/prefix; null: data/<name>-<8 hex of the recipe>."""
    seed: Seed = 0
    """Key of every random number of the data."""
    train: Trajectories = 100_000
    """Trajectories to train on."""
    validation: Trajectories = 5_000
    """Trajectories for the validation log-loss."""
    test: Annotated[int, AtLeast(0), AtMost(10**10)] = 5_000
    """Trajectories held out for the test log-loss and generalisation error."""
    source: Literal["stored", "virtual"] = "stored"
    """stored: written to disk once; virtual: nothing is written, who asks for trajectories computes them anew. Both are
    the same bytes."""
    fresh: bool = False
    """Every epoch goes on at new trajectories instead of meeting the same ones again; for source virtual."""
    materialise: tuple[Literal["theta", "action_set", "means"], ...] = ()
    """Regenerable arrays of a bandit to store all the same."""
    actors: Count | Literal["auto"] = "auto"
    """Ray actors that generate; auto: one per CPU, 0: in this process without Ray."""

    def problems(self) -> Iterator[Problem]:
        yield from place_problems("path", self.path)
        if self.fresh and self.source == "stored":
            yield Problem("fresh", self.fresh, "false with source stored", "set dataset.source=virtual")


@dataclass(frozen=True)
class ModelConfig(Section):
    """The transformer (Def 1-3 and their practical form)."""

    preset: Literal["practical", "theory"] = "practical"
    """theory: Def 1-3 exactly; practical: LayerNorm, low-dimensional heads with an output projection, biases."""
    layers: Annotated[int, AtLeast(1), AtMost(4096)] = 8
    """L."""
    heads: Size = 4
    """M."""
    embed_dim: Size = 32
    """D."""
    mlp_dim: Size = 128
    """D'."""
    attention: Literal["relu", "softmax"] = "relu"
    """relu: sum over j <= i of relu(<q_i, k_j>) v_j / i (Def 1); softmax: the usual one."""
    tokens: Literal["paper", "onehot", "merged"] = "paper"
    """paper and onehot: two tokens a round; merged: one token a round."""
    clip_norm: Positive | None = None
    """R of Def 3, the bound on a token's norm (theory preset); null: never binds."""

    def problems(self) -> Iterator[Problem]:
        if self.preset == "practical" and self.embed_dim % self.heads:
            near = [h for h in range(1, self.embed_dim + 1) if self.embed_dim % h == 0]
            best = min(near, key=lambda h: (abs(h - self.heads), h))
            yield Problem(
                "heads",
                self.heads,
                f"a divisor of embed_dim ({self.embed_dim})",
                f"take heads={best} or an embed_dim that {self.heads} divides",
            )
        if self.preset == "theory" and self.attention != "relu":
            yield Problem("attention", self.attention, "relu with preset theory (Def 1)", "set model.preset=practical")
        if self.preset == "practical" and self.clip_norm is not None:
            yield Problem("clip_norm", self.clip_norm, "null with preset practical", "set model.preset=theory")


@dataclass(frozen=True)
class ExpectConfig(Section):
    """What the evaluation must show for the run to count as a success."""

    teacher_ratio: Positive | None = None
    """Largest final regret, as a multiple of the teacher's."""
    uniform_ratio: Positive | None = None
    """Largest final regret, as a multiple of the uniform policy's."""


@dataclass(frozen=True)
class EvalConfig(Section):
    """Online regret in fresh environments, shared by all algorithms."""

    environments: Annotated[int, AtLeast(2), AtMost(10**6)] = 500
    seed: Seed = 12345
    """Key of the evaluation's environments, noise and action sampling."""
    baselines: tuple[AlgorithmConfig, ...] | None = None
    """Algorithms beside the transformer; a bare name takes its defaults; null: what suits the environment."""
    action: Literal["sample", "greedy"] = "sample"
    """How the transformer acts: sample from Alg_theta (the paper's definition) or its most likely action."""
    expect: ExpectConfig = ExpectConfig()


@dataclass(frozen=True)
class RunConfig(Section):
    """The run directory."""

    dir: str | None = None
    """null: runs/<name>-<8 hex of the config>; s3://bucket/prefix keeps the run there, with a mirror below runs/."""

    def problems(self) -> Iterator[Problem]:
        yield from place_problems("dir", self.dir)


BOX_DIM = 8
"""Largest dimension in which a posterior under the prior unit_box is sampled: rejection takes 2.1^dim attempts."""


def expert_problems(expert: ExpertConfig, environment: EnvironmentConfig) -> Iterator[Problem]:
    """Why an expert cannot label this environment's trajectories, if it cannot; paths are the config's."""
    if expert.label != "approximate":
        return
    if environment.kind not in BANDITS:
        yield Problem(
            "expert.label", "approximate", f"distillation or optimal with environment.kind={environment.kind}"
        )
        return
    path, got = "expert.estimator", expert.estimates_by
    linear = environment if isinstance(environment, LinearBanditConfig) else None
    if got == "empirical_mean":
        if linear is not None and linear.action_set == "fresh":
            yield Problem(
                path, got, "posterior_mean or posterior_sample: the actions of fresh sets have no mean of their own"
            )
        return
    if getattr(environment, "noise_std", 1.0) == 0 and (linear is None or linear.noise != "bernoulli"):
        yield Problem(path, got, "empirical_mean where environment.noise_std is 0", "or give the rewards noise")
    if got == "posterior_sample" and linear is not None:
        known = linear.noise == "gaussian" and linear.prior in ("gaussian", "unit_box")
        if not known or (linear.prior == "unit_box" and linear.dim > BOX_DIM):
            yield Problem(
                path,
                got,
                "empirical_mean or posterior_mean: the posterior is sampled exactly only with noise gaussian, under "
                f"the prior gaussian or, up to dim {BOX_DIM}, unit_box",
            )


_ALGORITHMS: tuple[PlainAlgorithmConfig, ...] = (
    UniformConfig(),
    OptimalConfig(),
    EmpiricalMeanConfig(),
    EpsilonGreedyConfig(),
    UCBConfig(),
    LinUCBConfig(),
    ThompsonConfig(),
    UCBVIConfig(),
    PSRLConfig(),
)

NAME_PATTERN = re.compile(r"[a-z0-9][a-z0-9._-]*")


@dataclass(frozen=True)
class Config(Section):
    """One experiment."""

    name: str = "experiment"
    seed: Seed = 0
    storage: StorageConfig = StorageConfig()
    environment: EnvironmentConfig = field(default_factory=LinearBanditConfig)
    context: tuple[ContextComponent, ...] = (ContextComponent(LinUCBConfig()),)
    expert: ExpertConfig = ExpertConfig()
    dataset: DatasetConfig = DatasetConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    run: RunConfig = RunConfig()

    identity_excludes: ClassVar[frozenset[str]] = frozenset(
        {
            "storage",
            "run",
            "eval",
            "dataset.path",
            "dataset.actors",
            "dataset.source",
            "train.max_failures",
            "train.keep_checkpoints",
            "train.collective_timeout_s",
            "train.activation_checkpointing",
        }
    )
    """Keys that change where or how fast, never what is trained; a run can be evaluated in more than one way."""

    may_change: ClassVar[frozenset[str]] = frozenset({"train.workers", "train.zero_stage"})
    """Keys of the identity, since they decide how sums round, under whose other values a run may go on all the same."""

    def problems(self) -> Iterator[Problem]:
        if not NAME_PATTERN.fullmatch(self.name):
            yield Problem("name", self.name, "lower-case letters, digits, '.', '_' and '-'")
        if not self.context:
            yield Problem("context", [], "at least one algorithm", "for example context=[{algorithm: linucb}]")
        elif sum(component.weight for component in self.context) <= 0:
            weights = [component.weight for component in self.context]
            yield Problem("context", weights, "at least one weight above 0", "raise one of the weights")
        if self.train.hold_positions and self.model.preset != "theory":
            held = self.train.hold_positions
            yield Problem("train.hold_positions", held, "false with preset practical", "set model.preset=theory")
        yield from self._strangers()
        yield from array_misfits("dataset.materialise", self.dataset.materialise, self.environment)
        yield from expert_problems(self.expert, self.environment)
        if self.train.global_batch > self.dataset.train:
            yield Problem(
                "train.global_batch",
                self.train.global_batch,
                f"at most dataset.train ({self.dataset.train})",
                "lower the batch or generate more trajectories",
            )

    def _strangers(self) -> Iterator[Problem]:
        """Algorithms that do not play in this kind of environment."""
        kind = self.environment.kind
        named = [(f"context[{i}]", component.algorithm) for i, component in enumerate(self.context)]
        named += [(f"eval.baselines[{i}]", algorithm) for i, algorithm in enumerate(self.eval.baselines or ())]
        for path, algorithm in named:
            if kind not in algorithm.plays:
                known = [c.algorithm for c in _ALGORITHMS if kind in c.plays]
                yield Problem(
                    f"{path}.algorithm", algorithm.algorithm, f"one that plays in {kind}: {', '.join(known)}, mixture"
                )
            else:
                yield from algorithm_misfits(path, algorithm, self.environment)

    def baselines(self) -> tuple[AlgorithmConfig, ...]:
        """`eval.baselines`, or what suits the environment."""
        if self.eval.baselines is not None:
            return self.eval.baselines
        match self.environment.kind:
            case "linear_bandit":
                bernoulli = getattr(self.environment, "noise", None) == "bernoulli"
                thompson = ThompsonConfig(noise_variance=0.25 if bernoulli else None)
                every = (LinUCBConfig(), thompson, EmpiricalMeanConfig(), UniformConfig())
                return tuple(a for a in every if not any(algorithm_misfits("", a, self.environment)))
            case "bernoulli_bandit" | "gaussian_bandit":
                return (UCBConfig(), ThompsonConfig(), EmpiricalMeanConfig(), UniformConfig())
            case _:
                return (UCBVIConfig(bonus=0.01, unvisited="ceiling"), PSRLConfig(), UniformConfig())

    def teacher(self) -> AlgorithmConfig | None:
        """The algorithm that the transformer imitates, where the labels come from one algorithm alone."""
        components = [component for component in self.context if component.weight > 0]
        if self.expert.label == "distillation" and len(components) == 1:
            return components[0].algorithm
        return None
