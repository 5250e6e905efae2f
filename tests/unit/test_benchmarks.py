"""The command of the benchmarks: what it takes, and that a missed floor is an exit code."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
from typer.testing import CliRunner

import benchmarks.capacity
import benchmarks.constructions
import benchmarks.store
from benchmarks.__main__ import NAMES, ON_REQUEST, app
from benchmarks.clock import in_turn


def command(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_unknown_names_are_refused_with_those_there_are():
    result = command("stoer")
    assert result.exit_code == 2
    assert f"NAME = stoer: expected one of {', '.join(NAMES + ON_REQUEST)}" in result.output
    assert "sweep" not in NAMES


@pytest.mark.parametrize("floor", [0.0, 1e9])
def test_a_missed_floor_is_exit_code_1(floor, monkeypatch, tmp_path):
    monkeypatch.setattr(benchmarks.store, "FLOORS", dict.fromkeys(benchmarks.store.FLOORS, floor))
    result = command("store", "--quick", "--out", tmp_path / "figures.json")
    assert result.exit_code == (1 if floor else 0), result.output
    assert result.output.splitlines()[-1] == ("missed: store" if floor else "every floor is met")
    figures = json.loads((tmp_path / "figures.json").read_text())["results"]["store"]
    assert figures["bytes"] == 65_536 * (200 + 800 + 2)
    assert all(rate["wall"] > 0 for rate in figures["bytes_per_second"].values())


@pytest.mark.parametrize("family", benchmarks.capacity.FAMILIES, ids=lambda family: family.name)
def test_capacity_of_a_family(family):
    """Rows of real constructions within their tolerance, and exponents of what was measured."""
    symbol, sizes = next(iter(family.sweeps.items()))
    small = dataclasses.replace(family, sweeps={symbol: sizes[:2]}, theorem={symbol: family.theorem[symbol]})
    rows = list(benchmarks.capacity.rows(small))
    assert [row["size"] for row in rows] == list(sizes[:2])
    assert all(0 < row["error"] <= family.tolerance for row in rows)
    fits = {fit["quantity"]: fit["fitted"] for fit in benchmarks.capacity.exponents(small, rows)}
    slope = np.log(rows[1]["L"] / rows[0]["L"]) / np.log(sizes[1] / sizes[0])
    assert fits["L"] == pytest.approx(slope, abs=1e-3)
    assert set(family.theorem[symbol]) <= set(fits)
    table = benchmarks.capacity.table({"rows": rows, "exponents": list(benchmarks.capacity.exponents(small, rows))})
    assert family.name in table


def test_contestants_take_turns_and_medians_are_taken():
    order = []
    times = in_turn({"a": lambda: order.append("a"), "b": lambda: order.append(np.ones(10**5).sum())}, 3)
    assert [entry if entry == "a" else "b" for entry in order] == ["a", "b"] * 3
    assert times["b"].wall_s >= 0


def test_the_constructions_are_checked_before_any_work_and_written_as_they_come(tmp_path, monkeypatch):
    def run(*arguments):
        result = CliRunner().invoke(benchmarks.constructions.app, [str(argument) for argument in arguments])
        return result.exit_code, result.output

    assert run("--help")[0] == 0
    code, output = run(tmp_path, "linucbb")
    assert code == 2
    assert "NAME = linucbb: expected one of linucb, thompson" in output
    code, output = run(tmp_path / "nowhere")
    assert code == 2
    assert "expected a directory that is there" in output
    assert list(tmp_path.iterdir()) == []

    def three(rows):
        yield from itertools.islice(rows(), 3)
        assert len((tmp_path / "linucb-depth.csv").read_text().splitlines()) == 4
        raise KeyboardInterrupt

    rows, draw = benchmarks.constructions.PARTS["linucb"]
    monkeypatch.setitem(benchmarks.constructions.PARTS, "linucb", (lambda: three(rows), draw))
    with pytest.raises(KeyboardInterrupt):
        benchmarks.constructions.measure(tmp_path, "linucb")
    assert len((tmp_path / "linucb-depth.csv").read_text().splitlines()) == 4
