"""The baselines of the paper's Experiment 1 against its published curves (eval/reference)."""

import csv
from pathlib import Path

import numpy as np
import pytest

from icrl import envs
from icrl.config import (
    ContextComponent,
    EmpiricalMeanConfig,
    LinearBanditConfig,
    LinUCBConfig,
    ThompsonConfig,
)
from icrl.rollout import generate
from icrl.streams import Split

ENVIRONMENT = LinearBanditConfig(dim=5, n_actions=10, horizon=200, noise_std=1.5)
BASELINES = {
    "LinUCB": LinUCBConfig(ridge=1.0, confidence=2.0),
    "TS": ThompsonConfig(prior_variance=1.0, noise_variance=2.25),
    "Emp": EmpiricalMeanConfig(),
}
CURVES = Path(__file__).parents[2] / "eval" / "reference" / "published_curves.csv"


def published(algorithm):
    with CURVES.open() as file:
        rows = [
            row
            for row in csv.DictReader(file)
            if (row["experiment"], row["quantity"], row["algorithm"])
            == ("exp1_linear_ad_linucb", "cumulative_regret", algorithm)
        ]
    return {int(row["t"]): (float(row["mean"]), float(row["standard_error"])) for row in rows}


@pytest.mark.parametrize("algorithm", BASELINES)
def test_regret_is_the_published_one(algorithm):
    index = np.arange(3000)
    batch = envs.sample(ENVIRONMENT, 0, Split.EVAL, index)
    played = generate(ENVIRONMENT, (ContextComponent(BASELINES[algorithm]),), 0, Split.EVAL, index)
    means = np.take_along_axis(batch.means, played.action.astype(np.int64), axis=1).astype(np.float64)
    regret = np.cumsum(batch.means.max(axis=1, keepdims=True) - means, axis=1)
    curve = published(algorithm)
    assert sorted(curve) == list(range(1, 201))
    for t in (10, 50, 100, 200):
        mean, error = regret[:, t - 1].mean(), regret[:, t - 1].std(ddof=1) / np.sqrt(len(index))
        published_mean, published_error = curve[t]
        print(f"{algorithm} t={t}: {mean:.2f} +- {error:.2f}, published {published_mean:.2f} +- {published_error:.2f}")
        assert abs(mean - published_mean) < 3 * np.hypot(error, published_error), t
