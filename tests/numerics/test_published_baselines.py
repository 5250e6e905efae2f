"""The baselines of the paper's experiments against its published curves (eval/reference)."""

import csv
from pathlib import Path

import numpy as np
import pytest

from icrl import envs
from icrl.config import (
    BernoulliBanditConfig,
    ContextComponent,
    EmpiricalMeanConfig,
    LinearBanditConfig,
    LinUCBConfig,
    ThompsonConfig,
    UCBConfig,
)
from icrl.rollout import generate
from icrl.streams import Split

ENVIRONMENTS = {
    "exp1_linear_ad_linucb": LinearBanditConfig(dim=5, n_actions=10, horizon=200, noise_std=1.5),
    "exp2_bernoulli_dpt_half": BernoulliBanditConfig(n_actions=5, horizon=200),
    "exp3_bernoulli_ad_ucb": BernoulliBanditConfig(n_actions=5, horizon=200),
    "exp4_bernoulli_dpt_mixtures": BernoulliBanditConfig(n_actions=5, horizon=200),
}
LINEAR = {
    "LinUCB": LinUCBConfig(ridge=1.0, confidence=2.0),
    "TS": ThompsonConfig(prior_variance=1.0, noise_variance=2.25),
    "Emp": EmpiricalMeanConfig(),
}
BERNOULLI = {"UCB": UCBConfig(index="shrunk", bonus=1.0), "TS": ThompsonConfig(), "Emp": EmpiricalMeanConfig()}
BASELINES = [
    *(("exp1_linear_ad_linucb", name) for name in LINEAR),
    *(("exp2_bernoulli_dpt_half", name) for name in BERNOULLI),
    *(("exp3_bernoulli_ad_ucb", name) for name in BERNOULLI),
    ("exp4_bernoulli_dpt_mixtures", "TS"),
]
CURVES = Path(__file__).parents[2] / "eval" / "reference" / "published_curves.csv"
ROUNDS = (10, 50, 100, 200)


def published(experiment, algorithm):
    """Round -> (mean, standard error) of the cumulative regret."""
    with CURVES.open() as file:
        rows = [
            row
            for row in csv.DictReader(file)
            if (row["experiment"], row["quantity"], row["algorithm"]) == (experiment, "cumulative_regret", algorithm)
        ]
    return {int(row["t"]): (float(row["mean"]), float(row["standard_error"])) for row in rows}


def regret(environment, config, n):
    """float64[n, T]: cumulative and free of noise, in environments of split EVAL."""
    index = np.arange(n)
    batch = envs.sample(environment, 0, Split.EVAL, index)
    played = generate(environment, (ContextComponent(config),), 0, Split.EVAL, index)
    means = np.take_along_axis(batch.means, played.action.astype(np.int64), axis=1).astype(np.float64)
    return np.cumsum(batch.means.max(axis=1, keepdims=True) - means, axis=1)


def deviations(ours, curve):
    """Ours less the published mean at each of ROUNDS, in combined standard errors."""
    out = []
    for t in ROUNDS:
        mean, error = ours[:, t - 1].mean(), ours[:, t - 1].std(ddof=1) / np.sqrt(len(ours))
        published_mean, published_error = curve[t]
        out.append((mean - published_mean) / np.hypot(error, published_error))
        print(f"t={t}: {mean:.2f} +- {error:.2f}, published {published_mean:.2f} +- {published_error:.2f}")
    return np.array(out)


@pytest.mark.parametrize(("experiment", "algorithm"), BASELINES, ids=lambda value: value.split("_")[0])
def test_regret_is_the_published_one(experiment, algorithm):
    curve = published(experiment, algorithm)
    assert sorted(curve) == list(range(1, 201))
    known = LINEAR if experiment.startswith("exp1") else BERNOULLI
    ours = regret(ENVIRONMENTS[experiment], known[algorithm], 3000 if known is LINEAR else 20_000)
    off = deviations(ours, curve)
    assert np.all(np.abs(off) < 3), off


@pytest.mark.parametrize("experiment", ["exp2_bernoulli_dpt_half", "exp3_bernoulli_ad_ucb"])
def test_the_figures_ucb_is_the_shrunk_one_and_not_ucb1(experiment):
    """UCB1's regret is far above the published curve."""
    curve = published(experiment, "UCB")
    off = deviations(regret(ENVIRONMENTS[experiment], UCBConfig(index="ucb1"), 3000), curve)
    assert off[-1] > 20
