"""The words of a config: one frozen dataclass a section, defaults and documentation at the field.

A section checks itself when it is made: `Section.__post_init__` applies the bounds written in the annotations and the
section's own `problems()`, and raises one `ConfigError` that holds them all.
"""

from __future__ import annotations

import dataclasses
import math
import re
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal


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
        return f"{place}{self.path or 'config'} = {self.got!r}: expected {self.expected}{remedy}"


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


# --- environments -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LinearBanditConfig(Section):
    """Stochastic linear bandit: r_t = <a_t, w*> + noise, actions from a finite set (paper, section 4.1)."""

    kind: Literal["linear_bandit"] = "linear_bandit"
    dim: Annotated[int, AtLeast(1), AtMost(64)] = 5
    """d, the dimension of an action."""
    n_actions: Annotated[int, AtLeast(2), AtMost(255)] = 10
    """A, the number of actions in the action set."""
    horizon: Annotated[int, AtLeast(1), AtMost(10**5)] = 200
    """T, the number of rounds."""
    noise_std: NonNegative = 1.5
    """sigma, the standard deviation of the Gaussian reward noise."""
    prior: Literal["unit_box"] = "unit_box"
    """The prior over w*: unit_box is Unif[0, 1]^d."""
    action_set: Literal["fixed"] = "fixed"
    """fixed: one set per environment, its actions drawn from Unif[-1, 1]^d."""


EnvironmentConfig = LinearBanditConfig


# --- algorithms -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class UniformConfig(Section):
    """Plays every action with probability 1/A."""

    algorithm: Literal["uniform"] = "uniform"


@dataclass(frozen=True)
class OptimalConfig(Section):
    """Plays the optimal action of the environment (it may see the environment)."""

    algorithm: Literal["optimal"] = "optimal"


@dataclass(frozen=True)
class EmpiricalMeanConfig(Section):
    """Plays each action once, then the best empirical mean ("Emp" in the paper's figures)."""

    algorithm: Literal["empirical_mean"] = "empirical_mean"


@dataclass(frozen=True)
class LinUCBConfig(Section):
    """LinUCB: index <a, w_t> + confidence * sqrt(a' A_t^-1 a), A_t = ridge I + sum a a'."""

    algorithm: Literal["linucb"] = "linucb"
    ridge: Positive = 1.0
    """lambda."""
    confidence: NonNegative = 2.0
    """alpha."""
    temperature: NonNegative = 0.0
    """tau: 0 plays the largest index (hard LinUCB), above 0 plays softmax(index / tau) (soft LinUCB, Thm 8)."""


@dataclass(frozen=True)
class ThompsonConfig(Section):
    """Thompson sampling for linear bandits: w* ~ N(0, prior_variance I), rewards with variance noise_variance."""

    algorithm: Literal["thompson"] = "thompson"
    prior_variance: Positive = 1.0
    """lambda of the paper's section 2.3."""
    noise_variance: Positive | None = None
    """r; null takes the environment's own noise_std squared."""


AlgorithmConfig = UniformConfig | OptimalConfig | EmpiricalMeanConfig | LinUCBConfig | ThompsonConfig


@dataclass(frozen=True)
class ContextComponent(Section):
    """One algorithm of the context mixture Alg_0, with its relative weight."""

    algorithm: AlgorithmConfig = field(metadata={"inline": True})
    """Its keys stand beside `weight`, not in a mapping of their own."""
    weight: NonNegative = 1.0
    """Relative weight; a trajectory comes from one component, drawn with these weights."""


# --- stages -----------------------------------------------------------------------------------------------------------


def directory_problems(name: str, value: str | None) -> Iterator[Problem]:
    """Why a path cannot be a directory of ours."""
    if value is not None and "://" in value:
        yield Problem(name, value, "a directory on a local or mounted disk", "object stores are not supported yet")


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

    label: Literal["distillation", "optimal"] = "distillation"
    """distillation: the context's own action (algorithm distillation); optimal: the environment's best action (DPT)."""


@dataclass(frozen=True)
class DatasetConfig(Section):
    """Trajectories on disk."""

    path: str | None = None
    """Directory of the dataset; null: data/<name>-<8 hex of the recipe>."""
    seed: Seed = 0
    """Key of every random number of the data."""
    train: Trajectories = 100_000
    """Trajectories to train on."""
    validation: Trajectories = 5_000
    """Trajectories for the validation log-loss."""
    test: Annotated[int, AtLeast(0), AtMost(10**10)] = 5_000
    """Trajectories held out for the test log-loss and generalisation error."""
    materialise: tuple[Literal["theta", "action_set"], ...] = ()
    """Regenerable arrays to store all the same."""
    actors: Count | Literal["auto"] = "auto"
    """Ray actors that generate; auto: one per CPU, 0: in this process without Ray."""

    def problems(self) -> Iterator[Problem]:
        yield from directory_problems("path", self.path)


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
class OptimizerConfig(Section):
    """AdamW."""

    lr: Positive = 1e-3
    """Peak learning rate."""
    weight_decay: NonNegative = 1e-4
    """Decoupled weight decay."""
    beta1: Annotated[float, AtLeast(0), AtMost(0.9999)] = 0.9
    beta2: Annotated[float, AtLeast(0), AtMost(0.99999)] = 0.999


@dataclass(frozen=True)
class ScheduleConfig(Section):
    """Learning rate against the step."""

    kind: Literal["cosine", "constant"] = "cosine"
    """After the warm-up: cosine decays to `floor` times the peak at the last step, constant stays."""
    warmup: Count = 200
    """Steps of linear warm-up."""
    floor: Annotated[float, AtLeast(0), AtMost(1)] = 0.0
    """Final learning rate of cosine, as a fraction of the peak."""


@dataclass(frozen=True)
class TrainConfig(Section):
    """Supervised pretraining (Eq. 3)."""

    steps: PositiveInt = 20_000
    """Optimiser steps."""
    global_batch: PositiveInt = 128
    """Trajectories in a step, over all workers."""
    micro_batch: PositiveInt | Literal["auto"] = "auto"
    """Trajectories in one forward pass of one worker; auto: global_batch / workers, no accumulation."""
    workers: PositiveInt | Literal["auto"] = "auto"
    """Processes; auto: one per GPU, or 2 on CPU."""
    threads: PositiveInt = 1
    """Torch threads of a worker on CPU; a number of the config, so that sums do not depend on the machine."""
    seed: Seed = 0
    """Seeds the weights and the order of the data."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: torch autocast over fp32 parameters."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """DeepSpeed ZeRO stage."""
    clip: NonNegative = 1.0
    """Largest norm of the global gradient; 0: no clipping."""
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    checkpoint_every: PositiveInt = 500
    """Steps between checkpoints."""
    keep_checkpoints: PositiveInt = 2
    """Newest checkpoints kept."""
    log_every: PositiveInt = 20
    """Steps between records of the training metrics."""
    validate_every: PositiveInt = 500
    """Steps between validation log-losses."""
    max_failures: Count = 3
    """Restarts of the worker group under Ray Train before the run fails."""

    def problems(self) -> Iterator[Problem]:
        if self.schedule.warmup >= self.steps:
            yield Problem("schedule.warmup", self.schedule.warmup, f"fewer than train.steps ({self.steps})")
        if isinstance(self.workers, int):
            yield from batch_problems(self, self.workers)


def batch_problems(train: TrainConfig, workers: int) -> Iterator[Problem]:
    """Why `global_batch` cannot be divided over `workers`, if it cannot."""
    if train.global_batch % workers:
        near = max(workers, train.global_batch // workers * workers)
        yield Problem(
            "global_batch",
            train.global_batch,
            f"a multiple of train.workers ({workers})",
            f"take train.global_batch={near}",
        )
    elif isinstance(train.micro_batch, int) and (train.global_batch // workers) % train.micro_batch:
        share = train.global_batch // workers
        yield Problem(
            "micro_batch",
            train.micro_batch,
            f"a divisor of a worker's share ({share} = {train.global_batch} / {workers})",
        )


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
    baselines: tuple[AlgorithmConfig, ...] = (LinUCBConfig(), ThompsonConfig(), EmpiricalMeanConfig(), UniformConfig())
    """Algorithms beside the transformer; a bare name takes that algorithm's defaults."""
    action: Literal["sample", "greedy"] = "sample"
    """How the transformer acts: sample from Alg_theta (the paper's definition) or its most likely action."""
    expect: ExpectConfig = ExpectConfig()


@dataclass(frozen=True)
class RunConfig(Section):
    """The run directory."""

    dir: str | None = None
    """null: runs/<name>-<8 hex of the config>."""

    def problems(self) -> Iterator[Problem]:
        yield from directory_problems("dir", self.dir)


NAME_PATTERN = re.compile(r"[a-z0-9][a-z0-9._-]*")


@dataclass(frozen=True)
class Config(Section):
    """One experiment."""

    name: str = "experiment"
    seed: Seed = 0
    storage: StorageConfig = StorageConfig()
    environment: EnvironmentConfig = LinearBanditConfig()
    context: tuple[ContextComponent, ...] = (ContextComponent(LinUCBConfig()),)
    expert: ExpertConfig = ExpertConfig()
    dataset: DatasetConfig = DatasetConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    run: RunConfig = RunConfig()

    identity_excludes: ClassVar[frozenset[str]] = frozenset(
        {"storage", "run", "eval", "dataset.path", "dataset.actors", "train.max_failures", "train.keep_checkpoints"}
    )
    """Keys that change where or how fast, never what is trained; a run can be evaluated in more than one way."""

    def problems(self) -> Iterator[Problem]:
        if not NAME_PATTERN.fullmatch(self.name):
            yield Problem("name", self.name, "lower-case letters, digits, '.', '_' and '-'")
        if not self.context:
            yield Problem("context", [], "at least one algorithm", "for example context=[{algorithm: linucb}]")
        elif sum(component.weight for component in self.context) <= 0:
            weights = [component.weight for component in self.context]
            yield Problem("context", weights, "at least one weight above 0", "raise one of the weights")
        if self.train.global_batch > self.dataset.train:
            yield Problem(
                "train.global_batch",
                self.train.global_batch,
                f"at most dataset.train ({self.dataset.train})",
                "lower the batch or generate more trajectories",
            )

    def teacher(self) -> AlgorithmConfig | None:
        """The algorithm that the transformer imitates, where the labels come from one algorithm alone."""
        components = [component for component in self.context if component.weight > 0]
        if self.expert.label == "distillation" and len(components) == 1:
            return components[0].algorithm
        return None
