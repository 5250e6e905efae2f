"""`python -m eval.theory`: which statement holds for a label, with which ratio, and when it refuses."""

import math
import re

import pytest

import eval.theory
from icrl.config import (
    BernoulliBanditConfig,
    Config,
    ContextComponent,
    ExpertConfig,
    LinUCBConfig,
    OptimalConfig,
    ThompsonConfig,
    UniformConfig,
)

ALGORITHMS = {"linucb": LinUCBConfig, "optimal": OptimalConfig, "thompson": ThompsonConfig, "uniform": UniformConfig}
BERNOULLI = BernoulliBanditConfig(n_actions=2, horizon=4)


@pytest.mark.parametrize(
    ("label", "context", "given", "found"),
    [
        ({"label": "distillation"}, ["thompson"], {}, ("Theorem 6", 0.0)),
        ({"label": "optimal"}, ["uniform"], {}, ("Theorem 6", 4 * math.log(2))),
        ({"label": "approximate", "estimator": "posterior_sample"}, ["thompson"], {}, ("Theorem 6", 0.0)),
        ({"label": "approximate"}, ["thompson"], {"ratio": 2.0}, ("Theorem 6", math.log(2))),
        ({"label": "approximate"}, ["thompson"], {"eps_approx": 0.1}, ("Prop 7", 0.0)),
        ({"label": "approximate"}, ["thompson"], {}, "or eps_approx=<nats> for Prop 7"),
        ({"label": "optimal"}, ["thompson"], {"eps_approx": 0.1}, "eps_approx = 0.1: expected only with"),
        ({"label": "optimal"}, ["linucb"], {}, "no bound is known: no component of the context"),
        ({"label": "optimal"}, ["optimal", "thompson"], {}, "not defined for this run (the context sees"),
        (
            {"label": "distillation"},
            ["optimal", "thompson"],
            {"ratio": 1.0},
            "not defined for this run (the context sees",
        ),
    ],
)
def test_which_statement_holds_for_a_label(label, context, given, found):
    config = Config(
        environment=BERNOULLI,
        context=tuple(ContextComponent(ALGORITHMS[name](), 0.5) for name in context),
        expert=ExpertConfig(**label),
    )
    if isinstance(found, str):
        with pytest.raises(ValueError, match=re.escape(found)):
            eval.theory._claim(config, given)
        return
    claim = eval.theory._claim(config, given)
    assert (claim.theorem, claim.log_ratio) == (found[0], pytest.approx(found[1]))
    assert claim.eps_approx == given.get("eps_approx")
