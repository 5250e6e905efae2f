"""results.json is read back as it was written; the table and the figure say what it says."""

import csv
import dataclasses
import json

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.image import imread

from eval import figures
from eval.regret import Ratio
from eval.results import (
    AlgorithmResult,
    ApproximationResult,
    Curve,
    Expectation,
    ImitationResult,
    ReducedResult,
    Results,
    load,
    metrics,
    save,
    table,
)
from icrl.config import LinUCBConfig, OptimalConfig, UniformConfig, to_dict

T = 40


def algorithm(role, config, level):
    steps = level * np.exp(-np.arange(T) / 15)
    regret = Curve(tuple(np.cumsum(steps).tolist()), tuple((0.05 * np.sqrt(np.arange(T) + 1)).tolist()))
    suboptimality = Curve(tuple(steps.tolist()), (0.02 * level,) * T)
    return AlgorithmResult(
        role=role,
        config=config and to_dict(config),
        final_regret=regret.mean[-1],
        final_regret_se=regret.standard_error[-1],
        suboptimality_final=steps[-1].item(),
        suboptimality_final_se=0.02 * level,
        regret=regret,
        suboptimality=suboptimality,
    )


@pytest.fixture
def results():
    return Results(
        version=1,
        name="demo",
        config_hash="01234567",
        evaluation="ab" * 32,
        dataset_sha256="cd" * 32,
        settings={"seed": 12345, "environments": 1000},
        environments=1000,
        horizon=T,
        trained_steps=3000,
        parameters={"backbone": 900, "total": 1000},
        algorithms={
            "transformer": algorithm("transformer", None, 1.1),
            "uniform": algorithm("reference", UniformConfig(), 2.0),
            "linucb": algorithm("teacher", LinUCBConfig(), 1.0),
            "optimal": algorithm("reference", OptimalConfig(), 0.0),
        },
        teacher="linucb",
        teacher_difference=Curve((0.1,) * T, (0.01,) * T),
        teacher_ratio=Ratio(1.1, 1.05, 1.15),
        uniform_ratio=Ratio(0.55, 0.5, 0.6),
        imitation=ImitationResult(4096, 0.31, 0.002, 0.9, Curve((0.3,) * T, (0.002,) * T)),
        expectations=(Expectation("teacher_ratio", 1.3, 1.1, True), Expectation("uniform_ratio", 0.5, 0.55, False)),
    )


def test_round_trip(results, tmp_path):
    save(results, tmp_path / "results.json")
    assert load(tmp_path / "results.json") == results
    bare = dataclasses.replace(
        results, teacher=None, teacher_difference=None, teacher_ratio=None, imitation=None, expectations=()
    )
    save(bare, tmp_path / "results.json")
    assert load(tmp_path / "results.json") == bare


@pytest.mark.parametrize(
    ("edit", "message"),
    [({"version": 0}, "results of version 0, expected 1"), ({"horizons": 3}, "not the results of an evaluation")],
)
def test_other_files_are_refused(results, tmp_path, edit, message):
    path = tmp_path / "results.json"
    save(results, path)
    path.write_text(json.dumps(json.loads(path.read_text()) | edit))
    with pytest.raises(ValueError, match=message):
        load(path)


def with_reduced(results):
    near = ReducedResult(256, "the context's algorithm", 0.02, 0.001, 0.11, 0.002)
    label = ApproximationResult(256, "by quadrature", 0.4, 0.03)
    return dataclasses.replace(
        results, imitation=dataclasses.replace(results.imitation, reduced=near, approximation=label)
    )


def test_the_reduced_expert_is_kept_shown_and_logged(results, tmp_path):
    full = with_reduced(results)
    save(full, tmp_path / "results.json")
    assert load(tmp_path / "results.json") == full
    text = table(full)
    assert (
        "(the context's algorithm) on 256 of them: KL 0.0200 ± 0.0010 nats a round, Hellinger distance 0.1100" in text
    )
    assert "KL 0.4000 ± 0.0300 nats (by quadrature)" in text
    extra = set(metrics(full)) - set(metrics(results))
    assert extra == {"eval/reduced_kl", "eval/reduced_hellinger", "eval/approximation_kl"}


def test_the_floor_of_sampling_is_shown_beside_the_distance(results, tmp_path):
    near = dataclasses.replace(with_reduced(results).imitation.reduced, kl_floor=0.004, hellinger_floor=0.05)
    full = dataclasses.replace(results, imitation=dataclasses.replace(results.imitation, reduced=near))
    save(full, tmp_path / "results.json")
    assert load(tmp_path / "results.json") == full
    assert "of these about 0.0040 and 0.0500 are the sampling of the expert alone" in table(full)
    assert "sampling of the expert" not in table(with_reduced(results))
    assert metrics(full)["eval/reduced_hellinger_floor"] == 0.05


def test_results_from_before_the_reduced_expert_are_read(results, tmp_path):
    path = tmp_path / "results.json"
    save(results, path)
    older = json.loads(path.read_text())
    del older["imitation"]["reduced"], older["imitation"]["approximation"]
    path.write_text(json.dumps(older))
    assert load(path) == results


def test_table(results):
    lines = table(results).splitlines()
    assert lines[0].split() == ["algorithm", "role", "final", "regret", "x", "teacher", "x", "uniform"]
    assert [line.split()[0] for line in lines[2:6]] == ["transformer", "linucb", "optimal", "uniform"]
    transformer, linucb = results.algorithms["transformer"], results.algorithms["linucb"]
    assert lines[2].split()[2:] == [f"{transformer.final_regret:.2f}", "±", "0.32", "1.10", "0.55"]
    assert lines[3].split()[2:] == [f"{linucb.final_regret:.2f}", "±", "0.32", "1.00", "0.50"]
    assert len({line.rindex(" ") for line in lines[2:6]}) == 1, "columns are aligned"
    assert "expected <= 1.30 x teacher, obtained 1.10: PASS" in lines
    assert "expected <= 0.50 x uniform, obtained 0.55: FAIL" in lines
    assert not results.passed


def test_metrics_leave_out_what_is_undefined(results):
    tags = metrics(results)
    assert tags["eval/teacher_ratio"] == 1.1
    assert tags["eval/regret/linucb"] == results.algorithms["linucb"].final_regret
    assert tags["eval/regret_final"] == tags["eval/regret/transformer"]
    bare = metrics(dataclasses.replace(results, teacher_ratio=None, imitation=None))
    assert set(tags) - set(bare) == {"eval/teacher_ratio", "eval/test_log_loss", "eval/agreement"}


def test_figure_files_are_deterministic_and_the_csv_is_the_results(results, tmp_path):
    before = dict(mpl.rcParams)
    first = figures.draw(results, tmp_path / "a")
    second = figures.draw(results, tmp_path / "b")
    assert dict(mpl.rcParams) == before
    assert [path.name for path in first] == ["regret.png", "regret.svg", "regret.csv"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    pixels = imread(first[0])
    assert min(pixels.shape[:2]) > 600
    assert np.ptp(pixels[..., :3]) == 1
    rows = list(csv.DictReader(first[2].open()))
    assert len(rows) == 4 * 2 * T
    for name, result in results.algorithms.items():
        for quantity, curve in (("cumulative_regret", result.regret), ("suboptimality", result.suboptimality)):
            own = [row for row in rows if (row["algorithm"], row["quantity"]) == (name, quantity)]
            assert [int(row["t"]) for row in own] == list(range(1, T + 1))
            assert tuple(float(row["mean"]) for row in own) == curve.mean
            assert tuple(float(row["se"]) for row in own) == curve.standard_error


def test_every_curve_but_the_axis_is_drawn_and_named(results, tmp_path):
    svg = figures.draw(results, tmp_path)[1].read_text()
    for name in ("transformer", "linucb", "uniform"):
        assert svg.count(f'id="curve-{name}"') == 2
    assert "curve-optimal" not in svg


def test_a_long_name_leaves_the_panels_their_room(results, tmp_path):
    name = "mixture-" + "+".join(["0.5epsilon_greedy-epsilon0.2"] * 6)
    algorithms = {name if old == "linucb" else old: result for old, result in results.algorithms.items()}
    long = dataclasses.replace(results, teacher=name, algorithms=algorithms)
    figure = figures._figure(long)
    assert all(axes.get_position().width > 0.15 for axes in figure.axes)
    assert name in figures.draw(long, tmp_path)[2].read_text()


def test_labels_that_would_touch_are_moved_apart_in_order():
    places = figures._spread([0.0, 0.01, 0.02, 0.5, 0.9], 0.1)
    assert places == sorted(places)
    assert min(np.diff(places)) >= 0.1 - 1e-12
    assert places[3:] == [0.5, 0.9]
