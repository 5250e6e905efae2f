"""From theory to practice at small size: d = 2, A = 3, T = 20, soft LinUCB distilled into three models.

`python -m benchmarks probe` trains, by `python -m train`, a practical transformer and one of the theory preset from
random weights, and the latter also from a construction of too few layers; then it probes them and the exact
construction layer by layer. Writes docs/theory/probe.{png,csv} and fine-tuning.csv.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

import icrl.checkpoint
from eval import style
from eval.plays import plays
from eval.probe import TARGETS, probe
from icrl import algorithms
from icrl.config import Config, LinearBanditConfig, LinUCBConfig, load, to_dict
from icrl.constructions import Construction, embed, linucb
from icrl.model import Transformer
from icrl.rollout.replay import history, played, rounds
from icrl.source import open_source
from icrl.streams import Split

CHECKOUT = Path(__file__).resolve().parent.parent
FOLDER = CHECKOUT / "docs" / "theory"
BANDIT = LinearBanditConfig(dim=2, n_actions=3, horizon=20, noise_std=0.5)
TEACHER = LinUCBConfig(confidence=1.0, temperature=0.2)
SEED, TRAJECTORIES = 12345, 256

_BASE = """\
name: probe
environment: {kind: linear_bandit, dim: 2, n_actions: 3, horizon: 20, noise_std: 0.5}
context:
  - {algorithm: linucb, confidence: 1.0, temperature: 0.2}
dataset: {train: 100000, validation: 512, test: 0, source: virtual, fresh: true}
train:
  {global_batch: 64, workers: 1, checkpoint_every: 100000, optimizer: {weight_decay: 0.0}, schedule: {warmup: 10}}
"""
PRACTICAL = "practical, from random weights"
THEORY = "theory preset, from random weights"
TUNED = "theory preset, from 2 Newton-Schulz layers"
EXACT = "construction, 6 Newton-Schulz layers"


def run(quick: bool) -> dict[str, Any]:  # noqa: FBT001 - the signature of every benchmark
    """`excess` log-loss over the teacher against steps, and `r2` by depth; quick: 4 steps each, nothing written."""
    options: dict[str, Any] = {"confidence": TEACHER.confidence, "temperature": TEACHER.temperature}
    exact = linucb(BANDIT, method="log_depth", tolerance=1e-2, **options)
    with tempfile.TemporaryDirectory(prefix="icrl-probe-") as folder:
        root = Path(folder)
        start = embed(linucb(BANDIT, method="log_depth", ridge_layers=2, knots=4, **options))
        icrl.checkpoint.save(start, root / "start")
        (root / "base.yaml").write_text(_BASE)
        sizes = f"model={json.dumps(to_dict(start.config))}"
        tuned = (f"train.init_from={root / 'start'}", "train.hold_positions=true")
        trained = {
            PRACTICAL: _train(root, "practical", 4 if quick else 600, 3e-3, "model={layers: 5}"),
            THEORY: _train(root, "theory", 4 if quick else 120, 3e-4, sizes, tuned[1]),
            TUNED: _train(root, "tuned", 4 if quick else 120, 1e-5, sizes, *tuned),
        }
        floor = _teacher_loss(load(root / "base.yaml").config)
        before = _validation_loss(start, load(root / "base.yaml").config)
        excess = {name: [(step, loss - floor) for step, loss in _losses(path)] for name, path in trained.items()}
        excess[TUNED].insert(0, (0, before - floor))
        models: dict[str, Transformer | Construction] = {EXACT: exact, "start": start}
        models |= {name: icrl.checkpoint.load(path) for name, path in trained.items()}
    data = plays(BANDIT, TEACHER, SEED, TRAJECTORIES)
    r2 = {name: dict(probe(model, data).r2) for name, model in models.items()}
    result = {
        "teacher_loss": floor,
        "excess": excess,
        "r2": r2,
        "passed": r2[EXACT]["ridge_estimate"][-1] > 0.999 and excess[TUNED][-1][1] < excess[TUNED][0][1],
    }
    if not quick:
        write(result)
    return result


def _train(root: Path, name: str, steps: int, lr: float, *overrides: str) -> Path:
    every = max(1, steps // 16)
    command = [sys.executable, "-m", "train", str(root / "base.yaml"), f"storage.root={root}", f"run.dir={name}"]
    command += [f"train.steps={steps}", f"train.optimizer.lr={lr}", f"train.validate_every={every}", *overrides]
    command += [] if steps > 10 else ["train.schedule.warmup=1"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=CHECKOUT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"{' '.join(command)} ended with {done.returncode}:\n{(done.stdout + done.stderr)[-2000:]}")
    return root / name


def _losses(run_dir: Path) -> list[tuple[int, float]]:
    records = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    tag = "train/validation_loss"
    return [(record["step"], record["tags"][tag]) for record in records if tag in record["tags"]]


def _validation(config: Config) -> Mapping[str, Any]:
    source = open_source(config, "validation")
    return {"index": np.arange(source.n, dtype=np.int64)} | source.rows(slice(0, source.n))


def _teacher_loss(config: Config) -> float:
    """-log of what the teacher did, on the validation split: no model is below it but by luck."""
    rows = _validation(config)
    past = history(BANDIT, config.dataset.seed, Split.VALIDATION, dict(rows))
    steps = rounds(algorithms.build(TEACHER, BANDIT), past)
    return float(np.mean([-np.log(played(p, past.action[:, t])) for t, p in enumerate(steps)]))


def _validation_loss(model: Transformer, config: Config) -> float:
    import torch

    from icrl import envs
    from icrl.loss import log_loss

    rows = _validation(config)
    shown = torch.from_numpy(envs.action_sets(BANDIT, config.dataset.seed, Split.VALIDATION, rows["index"]))
    action, reward = torch.from_numpy(rows["action"]).long(), torch.from_numpy(rows["reward"])
    with torch.no_grad():
        return float(log_loss(model(shown, action, reward), action).mean())


def write(result: dict[str, Any]) -> None:
    """probe.csv, fine-tuning.csv and the figure of both."""
    tables: dict[str, tuple[tuple[str, ...], list[tuple[Any, ...]]]] = {
        "probe.csv": (
            ("model", "target", "layers", "r2"),
            [(m, t, k, v) for m, by in result["r2"].items() for t, values in by.items() for k, v in enumerate(values)],
        ),
        "fine-tuning.csv": (
            ("model", "step", "excess"),
            [(name, step, value) for name, curve in result["excess"].items() for step, value in curve],
        ),
    }
    for name, (head, body) in tables.items():
        with (FOLDER / name).open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(head)
            writer.writerows(body)
    with style.settings():
        figure(result).savefig(FOLDER / "probe.png", dpi=110, metadata={"Software": None})


def figure(result: dict[str, Any]) -> Figure:
    """R^2 against the share of layers passed, one panel a target; then excess log-loss against steps."""
    out = Figure(figsize=(9, 6.6), layout="constrained", facecolor="white")
    panels = list(out.subplots(2, 2).flat)
    colours = dict(zip((EXACT, PRACTICAL, THEORY, TUNED), style.PALETTE, strict=False))
    for axes, (target, title) in zip(panels, TARGETS.items(), strict=False):
        for name, colour in colours.items():
            values = result["r2"][name][target]
            depth = np.linspace(0, 1, len(values))
            axes.plot(depth, values, marker="o", markersize=3, color=colour, label=name)
        axes.set(title=title, xlabel="share of layers passed", ylabel="held-out $R^2$", ylim=(-0.05, 1.05))
        style.plain(axes)
    out.legend(*panels[0].get_legend_handles_labels(), fontsize=8, loc="outside lower center", ncols=2, frameon=False)
    last = panels[3]
    for name, curve in result["excess"].items():
        last.plot(*zip(*curve, strict=True), color=colours[name], marker="o", markersize=3, label=name)
    last.set(yscale="log", xlabel="steps of 64 trajectories", ylabel="log-loss above the teacher's")
    last.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    last.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    last.yaxis.set_minor_formatter(NullFormatter())
    last.set_title("training")
    style.plain(last)
    return out


def table(result: dict[str, Any]) -> str:
    """Ends of the curves, and R^2 by depth."""
    lines = [f"teacher's log-loss {result['teacher_loss']:.4f}; above it, first and last"]
    for name, curve in result["excess"].items():
        (first, a), (last, b) = curve[0], curve[-1]
        lines.append(f"  {name:46}{a:9.4f} at step {first:<5}{b:9.4f} at step {last}")
    for name, by in result["r2"].items():
        lines.append(f"{name}: held-out R^2 by layers passed")
        lines += [f"  {target:16}" + "".join(f"{value:8.3f}" for value in values) for target, values in by.items()]
    return "\n".join(lines)
