"""The commands and programs of `docs/datasets.md` run as they stand."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from data_gen.__main__ import app

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "datasets.md").read_text()
SMALL = ["dataset.train=2000", "dataset.validation=256", "dataset.test=0", "dataset.actors=0"]


def command(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.output
    return result.output


def test_the_page_on_datasets_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = str(Path("configs/demo.yaml").resolve())
    monkeypatch.chdir(tmp_path)
    lines = [line for line in PAGE.splitlines() if line.startswith("python -m data_gen ")]
    assert len(lines) >= 9
    dataset = ""
    done = set()
    for line in lines:
        words = shlex.split(line, comments=True)[3:]
        if words[0] == "configs/demo.yaml":
            output = command(config, *words[1:], *SMALL)
            dataset = re.findall(r"^dataset +(\S+)$", output, re.MULTILINE)[0]
            assert Path(dataset).exists() == ("--dry-run" not in words or len(done) > 0)
        else:
            assert "data/demo-<hash>" in words
            output = command(*(word.replace("data/demo-<hash>", dataset) for word in words))
        done.add(words[0])
        expected = {"verify": "sound ", "repair": "nothing to repair", "inspect": "regret at t"}
        assert expected.get(words[0], "missing ") in output
    assert done == {"configs/demo.yaml", "verify", "repair", "inspect"}

    programs = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(programs) == 4
    rewards = []
    for program in programs:
        names: dict[str, object] = {}
        exec(program.replace("data/demo-<hash>", dataset), names)
        rewards.append(names["reward"])
    for reward in rewards:
        np.testing.assert_array_equal(reward, rewards[-1], strict=True)
    assert np.shape(rewards[-1]) == (100, 50)
