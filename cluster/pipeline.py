"""generate -> train -> eval as one job, on a local Ray or a cluster's."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.preemption import REASON as PREEMPTED
from cluster.trial import train_in_ray
from data_gen.generate import generate
from data_gen.plan import Plan, plan
from eval.line_up import check as check_line_up
from icrl.cli import FAILED, INTERRUPTED, TERMINATED, say
from icrl.config import Loaded
from icrl.files import write_json
from icrl.progress import Progress
from icrl.run_dir import RunDirectory
from icrl.store import require_free
from train.launch import TrainPlan, check


@dataclass(frozen=True)
class PipelinePlan:
    """What the job is about to do."""

    dataset: Plan
    train: TrainPlan

    def describe(self, loaded: Loaded) -> str:
        environments = loaded.config.eval.environments
        return "\n".join(
            [
                self.dataset.describe(),
                self.train.describe(loaded.config),
                f"evaluation      {environments:,} fresh environments",
            ]
        )


def check_all(loaded: Loaded, gpus: int | None = None) -> PipelinePlan:
    """Every check of every stage, before any work; writes nothing. `gpus` are a cluster's; None: this machine's.

    Raises:
        ConfigError, ValueError: the first stage that cannot run, and why.
    """
    training = check(loaded, gpus)
    check_line_up(loaded.config)
    dataset = plan(loaded.config)
    require_free(dataset.dataset, dataset.bytes_needed)
    return PipelinePlan(dataset, training)


def run_pipeline(loaded: Loaded, planned: PipelinePlan, run: RunDirectory, progress: Progress) -> int:
    """The stages that are not done yet; returns the exit code. The caller holds the run's lock.

    Ray must be connected unless nothing is left to do.
    """
    with run.failing():
        if not planned.dataset.complete:
            generate_stage(loaded, planned.dataset, run, progress)
        if planned.train.finished:
            run.settle()
        elif code := train_stage(loaded, planned.train, progress):
            return code
        return evaluate_stage(loaded, run, progress)


def generate_stage(loaded: Loaded, planned: Plan, run: RunDirectory, progress: Progress) -> None:
    """Write what the dataset lacks; the run's logs keep which node wrote how much."""
    progress.start("generate", planned.trajectories_missing)
    summary = generate(loaded.config, progress=lambda now: progress.update(now.trajectories))
    record = {"actors": summary.actors, "seconds": summary.seconds, "shards_by_node": summary.shards_by_node}
    write_json(run.logs / "generation.json", record)
    rate = summary.trajectories_written / max(summary.seconds, 1e-9)
    progress.finish(f"{summary.trajectories_written:,} trajectories by {summary.actors} actors, {rate:,.0f}/s")


def train_stage(loaded: Loaded, planned: TrainPlan, progress: Progress) -> int:
    """Train under Ray Train; 0 when trained, else the exit code."""
    state = train_in_ray(loaded, planned, progress)
    status = planned.run.status()
    if state == "trained":
        progress.finish(f"{status['step']} steps on {planned.workers} workers")
        return 0
    if state == "stopped":
        reason = planned.run.stop_requested()
        why = ": a node is being taken away, and what stays is not enough" if reason == PREEMPTED else ""
        progress.say(f"stopped at step {status['step']}{why}; the same command resumes")
        return INTERRUPTED if reason == "SIGINT" else TERMINATED
    progress.say(f"{state} at step {status.get('step')}: {status.get('error', '')}")
    return FAILED


def evaluate_stage(loaded: Loaded, run: RunDirectory, progress: Progress) -> int:
    """Regret in fresh environments, the table and the verdict; 0 when every expectation holds."""
    from eval.results import table
    from eval.run import evaluate_run

    progress.start("evaluate", 1)
    results = evaluate_run(run, loaded.config, progress=progress.say)
    progress.finish(f"{loaded.config.eval.environments} environments")
    say()
    say(table(results))
    return 0 if results.passed else FAILED
