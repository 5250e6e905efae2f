"""What a sweep adds to its trials: 8 small trials one after another from the shell, against the same ones as a sweep.

Both in one run, wall time. From the shell: `python -m data_gen` once, then `python -m train` and `python -m eval` for
each trial, without Ray. The sweep runs one trial at a time, so that only set-up and scheduling differ.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parent.parent
ONCE_S, PER_TRIAL_S = 15.0, 10.0
"""The largest overhead that counts as a success: once, and for each trial."""

_BASE = """\
name: tiny
environment: {dim: 2, n_actions: 3, horizon: 10, noise_std: 0.5}
dataset: {train: 4096, validation: 256, test: 256, actors: 0}
model: {layers: 1, heads: 2, embed_dim: 16, mlp_dim: 32, tokens: merged}
train: {steps: 40, global_batch: 32, workers: 2, checkpoint_every: 20, schedule: {warmup: 5}}
eval: {environments: 40, baselines: [linucb]}
"""


def run(quick: bool) -> dict[str, Any]:  # noqa: FBT001 - the signature of every benchmark
    """`shell_s` and `sweep_s`, the overhead a trial once `ONCE_S` is taken off, and whether it is small enough.

    Raises ValueError where a trial of the sweep ends in other weights than from the shell: then the times would not be
    comparable.
    """
    trials = 2 if quick else 8
    with tempfile.TemporaryDirectory(prefix="icrl-sweep-") as folder:
        config = Path(folder) / "tiny.yaml"
        config.write_text(_BASE)
        shell, sweep = Path(folder) / "shell", Path(folder) / "sweep"
        shell_s = _from_the_shell(config, shell, trials)
        seeds = ",".join(map(str, range(trials)))
        (Path(folder) / "sweep.yaml").write_text(
            f"base: tiny\nmethod: grid\nparameters: {{seed: {{values: [{seeds}]}}}}\nray: {{max_concurrent: 1}}\n"
        )
        started = time.perf_counter()
        _python("cluster", "sweep", Path(folder) / "sweep.yaml", f"storage.root={sweep}")
        sweep_s = time.perf_counter() - started
        if _weights(shell) != _weights(sweep):
            raise ValueError("the sweep's trials and those from the shell end in different weights")
    per_trial = (sweep_s - shell_s - ONCE_S) / trials
    return {
        "trials": trials,
        "shell_s": shell_s,
        "sweep_s": sweep_s,
        "overhead_per_trial_s": per_trial,
        "floors": {"once_s": ONCE_S, "overhead_per_trial_s": PER_TRIAL_S},
        "passed": per_trial <= PER_TRIAL_S,
    }


def _from_the_shell(config: Path, root: Path, trials: int) -> float:
    started = time.perf_counter()
    _python("data_gen", config, f"storage.root={root}")
    for seed in range(trials):
        before = set(root.glob("runs/*"))
        _python("train", config, f"storage.root={root}", f"seed={seed}")
        (made,) = set(root.glob("runs/*")) - before
        _python("eval", made)
    return time.perf_counter() - started


def _weights(root: Path) -> dict[int, bytes]:
    """The weights by the seed of the run."""
    found = {}
    for weights in root.rglob("model.safetensors"):
        record = json.loads((weights.parent / "run.json").read_text())
        seed = next(entry for entry in record["overrides"] if entry.startswith("seed="))
        found[int(seed.removeprefix("seed="))] = weights.read_bytes()
    return found


def _python(module: str, *arguments: object) -> None:
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"{' '.join(command)} ended with {done.returncode}:\n{(done.stdout + done.stderr)[-2000:]}")


def table(result: dict[str, Any]) -> str:
    """The result of `run` for a terminal."""
    trials = result["trials"]
    return "\n".join(
        [
            f"{trials} trials from the shell   {result['shell_s']:8.1f} s  {result['shell_s'] / trials:6.1f} s each",
            f"{trials} trials as a sweep       {result['sweep_s']:8.1f} s  {result['sweep_s'] / trials:6.1f} s each",
            f"added to each trial       {result['overhead_per_trial_s']:8.1f} s beyond {ONCE_S:.0f} s once "
            f"(at most {PER_TRIAL_S:.0f} s)",
        ]
    )
