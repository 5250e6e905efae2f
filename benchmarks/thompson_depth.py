"""Thompson sampling's posterior in weights: depth, sizes and error against T, the condition number and the layers.

`python -m benchmarks.constructions FOLDER thompson` writes thompson-depth.csv and thompson-depth.png. An error is the
largest |error of sqrt(r) Sigma_t^{-1/2} a_k| along Thompson sampling's own plays, L that of a model that reads samples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.figure import Figure
from torch import Tensor

from icrl import algorithms, envs
from icrl.config import LinearBanditConfig, ThompsonConfig
from icrl.constructions import Construction, pade, thompson
from icrl.constructions.inverse_root import root_schedule
from icrl.constructions.problem import RidgeProblem, ridge_problem
from icrl.rollout.loop import play
from icrl.streams import Split

SETTING = LinearBanditConfig()
SMALL = LinearBanditConfig(dim=3, n_actions=3, horizon=30)
TOLERANCE = 1e-4
VARIANCE = SETTING.noise_std**2
Row = dict[str, Any]
Array = npt.NDArray[np.float64]


def history(environment: LinearBanditConfig, prior_variance: float, n: int) -> tuple[tuple[Tensor, ...], Array, Array]:
    """Thompson sampling's plays in n environments, the means [n,T,A] and spreads [n,T,A,d] it drew from."""
    index = np.arange(n, dtype=np.int64)
    config = ThompsonConfig(prior_variance=prior_variance)
    played = play(environment, algorithms.build(config, environment), 7, Split.EVAL, index)
    a = envs.action_sets(environment, 7, Split.EVAL, index).astype(np.float64)
    sigma = np.tile(np.eye(environment.dim) * VARIANCE / prior_variance, (n, 1, 1))
    sums = np.zeros((n, environment.dim))
    means, spreads = [], []
    for t in range(environment.horizon):
        values, vectors = np.linalg.eigh(sigma)
        root = (vectors / np.sqrt(values)[:, None]) @ vectors.transpose(0, 2, 1)
        means.append(np.einsum("nad,nde,nef,nf->na", a, root, root, sums))
        spreads.append(math.sqrt(VARIANCE) * a @ root)
        x = a[np.arange(n), played.action[:, t]]
        sigma = sigma + x[:, :, None] * x[:, None, :]
        sums = sums + x * played.reward[:, t, None]
    shown = np.pad(a, ((0, 0), (0, 1), (0, 0)))  # z_t = 0: the posterior does not see it
    data = tuple(torch.from_numpy(part) for part in (shown, played.action, played.reward))
    return data, np.stack(means, 1), np.stack(spreads, 1)


def errors(model: Construction, data: tuple[Tensor, ...], means: Array, spreads: Array) -> dict[str, float]:
    """Largest error of a mean and of a spread, in norm, at the tokens that ask."""
    h = torch.empty(0)
    for state in model.states(*data):
        h = state
    found = [model.stream.read(h[:, ::2], name).double().numpy() for name in ("means", "spreads")]
    off = np.linalg.norm(found[1].reshape(spreads.shape) - spreads, axis=-1)
    return {"error": float(off.max()), "mean_error": float(np.abs(found[0] - means).max())}


def _row(part: str, model: Construction, problem: RidgeProblem, **found: float) -> Row:
    report = model.report
    return {
        "part": part,
        "method": report.method.split(",")[0],
        "dtype": str(model.dtype).removeprefix("torch."),
        "T": problem.horizon,
        "kappa": problem.condition,
        "steps": report.choices["steps"],
        "terms": report.choices.get("terms"),
        "L": report.layers,
        "M": report.heads,
        "D": report.embed_dim,
        "D'": report.mlp_dim,
        "norm": report.operator_norm,
        "guaranteed": report.choices["guaranteed"],
        "error": None,
        "mean_error": None,
    } | found


def _built(environment: LinearBanditConfig, prior_variance: float = 1.0, **options: Any) -> Construction:
    algorithm = ThompsonConfig(prior_variance=prior_variance)
    return thompson(environment, algorithm, read="samples", temperature=1.0, **options)


def rows() -> Iterator[Row]:
    """Every point of the figure."""
    for horizon in (10, 30, 100, 200, 500, 1000, 2000):
        environment = replace(SETTING, horizon=horizon)
        problem = ridge_problem(environment, VARIANCE)
        yield _row("depth", _built(environment, tolerance=TOLERANCE), problem)
        terms = pade.terms_for(problem, VARIANCE, TOLERANCE / 4)
        steps = pade.steps_for(problem, VARIANCE, terms, TOLERANCE)
        one = _built(environment, method="paper", terms=terms, steps=1)  # of the same widths
        yield _row("depth", one, problem, steps=steps, L=one.report.layers + 2 * (steps - 1), guaranteed=TOLERANCE)
    for environment in (SETTING, SMALL):
        known = history(environment, 1.0, 2)
        problem = ridge_problem(environment, VARIANCE)
        for steps in range(1, 9):
            model = _built(environment, steps=steps)
            yield _row("steps", model, problem, **errors(model, *known))
        if environment is SMALL:
            for steps in (20, 40, 80, 160):
                model = _built(environment, method="paper", terms=14, steps=steps)
                yield _row("steps", model, problem, **errors(model, *known))
    for prior_variance in (0.1, 1.0, 10.0, 100.0, 1000.0):
        known = history(SETTING, prior_variance, 2)
        problem = ridge_problem(SETTING, VARIANCE / prior_variance)
        for dtype in (torch.float64, torch.float32):
            model = _built(SETTING, prior_variance).to(dtype)
            yield _row("condition", model, problem, **errors(model, *known))
    for horizon in (50, 200, 500, 1000, 2000):
        environment = replace(SETTING, horizon=horizon)
        known = history(environment, 1.0, 1)
        for dtype in (torch.float64, torch.float32):
            model = _built(environment).to(dtype)
            yield _row("horizon", model, ridge_problem(environment, VARIANCE), **errors(model, *known))


def draw(found: list[Row], path: Path) -> None:
    """Four panels: depth against T, error against layers, error against T, error against the condition number."""
    figure = Figure(figsize=(11, 8), layout="constrained")
    depth, steps, horizon, condition = figure.subplots(2, 2).flat

    def line(axes: Any, part: str, x: str, y: str, label: str, **match: object) -> None:
        chosen = [row for row in found if row["part"] == part and all(row[k] == v for k, v in match.items())]
        axes.loglog([row[x] for row in chosen], [row[y] for row in chosen], marker="o", label=label)

    for method in ("paper", "log_depth"):
        line(depth, "depth", "T", "L", method, method=method)
        line(steps, "steps", "L", "error", f"{method}, d = A = 3, T = 30", method=method, T=SMALL.horizon)
    line(steps, "steps", "L", "error", "log_depth, d = 5, A = 10, T = 200", method="log_depth", T=SETTING.horizon)
    problem = ridge_problem(SETTING, VARIANCE)
    plain = [root_schedule(problem.condition, n, plain=True).error * problem.action_bound for n in range(1, 14)]
    steps.loglog([4 + 2 * n for n in range(1, 14)], plain, ":", label="bound of plain Newton-Schulz, T = 200")
    depth.set(xlabel="T", ylabel="layers", title=f"Layers that guarantee {TOLERANCE:g}")
    steps.axhline(TOLERANCE, color="grey", linestyle=":")
    steps.set(xlabel="layers", ylabel="error", ylim=(1e-13, 10), title="Measured error of √r Σ^(-1/2) a")
    for dtype in ("float64", "float32"):
        line(horizon, "horizon", "T", "error", dtype, dtype=dtype)
        line(condition, "condition", "kappa", "error", dtype, dtype=dtype)
    horizon.set(xlabel="T", ylabel="error", title="log_depth, measured, prior variance 1")
    condition.set(xlabel="condition number bound", ylabel="error", title="log_depth, measured, T = 200")
    for axes in (depth, steps, horizon, condition):
        axes.legend()
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=130)
