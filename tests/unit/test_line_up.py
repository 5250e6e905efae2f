"""Who is evaluated: each algorithm once, under a name of its own."""

import pytest

from eval.line_up import check, line_up
from icrl.config import (
    BernoulliBanditConfig,
    Config,
    ConfigError,
    ContextComponent,
    EmpiricalMeanConfig,
    EpsilonGreedyConfig,
    EvalConfig,
    LinearBanditConfig,
    LinUCBConfig,
    MixtureComponent,
    MixtureConfig,
    OptimalConfig,
    ThompsonConfig,
    UniformConfig,
    override,
)


def config(teacher, *baselines, **environment):
    return Config(
        environment=LinearBanditConfig(**environment),
        context=(ContextComponent(teacher),),
        eval=EvalConfig(baselines=baselines),
    )


def roles(experiment):
    return {entrant.name: entrant.role for entrant in line_up(experiment)}


def test_a_baseline_that_is_the_teacher_is_the_teacher():
    experiment = config(LinUCBConfig(), ThompsonConfig(), LinUCBConfig(), UniformConfig())
    assert roles(experiment) == {
        "transformer": "transformer",
        "linucb": "teacher",
        "thompson": "baseline",
        "uniform": "baseline",
        "optimal": "reference",
    }
    assert line_up(experiment)[0].algorithm is None


def test_references_are_there_unasked():
    assert roles(config(LinUCBConfig())) == {
        "transformer": "transformer",
        "linucb": "teacher",
        "uniform": "reference",
        "optimal": "reference",
    }
    assert roles(config(OptimalConfig(), EmpiricalMeanConfig()))["optimal"] == "teacher"


def test_thompson_sampling_of_a_bernoulli_bandit_has_no_variances():
    experiment = Config(
        environment=BernoulliBanditConfig(),
        context=(ContextComponent(ThompsonConfig(prior_variance=2.0)),),
        eval=EvalConfig(baselines=(ThompsonConfig(), ThompsonConfig(noise_variance=1.0))),
    )
    assert roles(experiment) == {
        "transformer": "transformer",
        "thompson": "teacher",
        "uniform": "reference",
        "optimal": "reference",
    }


def test_configs_of_one_algorithm_are_told_apart_by_what_differs():
    experiment = config(LinUCBConfig(), LinUCBConfig(confidence=0.5), LinUCBConfig(confidence=1), EmpiricalMeanConfig())
    assert list(roles(experiment))[1:4] == ["linucb-confidence2", "linucb-confidence0.5", "linucb-confidence1"]
    assert "empirical_mean" in roles(experiment)


def test_configs_that_play_alike_are_one():
    experiment = config(UniformConfig(), ThompsonConfig(), ThompsonConfig(noise_variance=2.25), noise_std=1.5)
    assert [name for name in roles(experiment) if name.startswith("thompson")] == ["thompson"]
    experiment = config(UniformConfig(), ThompsonConfig(), ThompsonConfig(noise_variance=1.0), noise_std=1.5)
    assert [n for n in roles(experiment) if n.startswith("thompson")] == [
        "thompson-noise_variance2.25",
        "thompson-noise_variance1",
    ]


def test_mixtures_are_told_apart_by_their_components():
    def mixture(*components):
        return MixtureConfig(components=tuple(MixtureComponent(*component) for component in components))

    first = mixture((ThompsonConfig(),), (EpsilonGreedyConfig(epsilon=0.2), 0.5))
    assert "mixture" in roles(config(first))
    names = roles(config(first, mixture((ThompsonConfig(),), (EpsilonGreedyConfig(), 2.0))))
    assert list(names)[1:3] == [
        "mixture-thompson+0.5epsilon_greedy-epsilon0.2",
        "mixture-thompson+2epsilon_greedy",
    ]


def test_no_teacher_where_labels_come_from_the_optimum_or_a_mixture():
    experiment = override(config(LinUCBConfig(), LinUCBConfig()), ["expert.label=optimal"])
    assert roles(experiment)["linucb"] == "baseline"
    assert "teacher" not in roles(experiment).values()
    check(experiment)
    with pytest.raises(ConfigError, match=r"eval.expect.teacher_ratio = 1.3: expected null"):
        check(override(experiment, ["eval.expect.teacher_ratio=1.3"]))
