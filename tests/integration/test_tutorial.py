"""The tutorial's script runs, and its page shows what the script prints."""

import importlib.util
import re
from pathlib import Path

TUTORIALS = Path(__file__).resolve().parents[2] / "docs" / "tutorials"
NUMBER = re.compile(r"-?\d[\d,]*\.?\d*(?:e[+-]?\d+)?")


def script():
    spec = importlib.util.spec_from_file_location("linucb_in_weights", TUTORIALS / "linucb_in_weights.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_shows_what_the_script_prints(tmp_path, capsys):
    script().main(tmp_path, environments=200)
    printed = capsys.readouterr().out.splitlines()
    page = (TUTORIALS / "linucb-in-weights.md").read_text()
    shown = page.split("## What it prints\n```\n")[1].split("\n```")[0].splitlines()
    assert [NUMBER.sub("#", line) for line in shown] == [NUMBER.sub("#", line) for line in printed]
    for ours, theirs in zip(shown, printed, strict=True):
        rounding = any(float(x) < 1e-6 for x in re.findall(r"\d\.\de-\d+", theirs))
        assert rounding or ours == theirs
    errors = [float(line.split()[-1]) for line in printed if re.search(r"\d\.\de-\d\d$", line) and "=" not in line]
    assert len(errors) == 4
    assert max(errors[:3]) < 1e-6
    assert errors[3] < 5e-3
    assert (tmp_path / "linucb-in-weights.png").stat().st_size > 10_000
