"""Runs the trials of a sweep on Ray Tune.

Tune decides when each trial starts and, with early_terminate, which ones stop early. It keeps nothing: what has been
done is read from the trials' run directories, so the same command after any kill goes on where the sweep was.
"""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType, SimpleNamespace
from typing import Any

from cluster.sweep_display import Display
from cluster.sweep_file import VALIDATION_LOSS, SweepFile
from cluster.sweep_state import EARLY, SweepDirectory, outcome
from cluster.sweep_trial import TrialTask, run_trial
from cluster.trial import own_resources, release_reservation
from icrl.board import read_records
from icrl.run_dir import RunDirectory

_POLL_S = 0.5
_TRIAL_MEMORY = 2**28
"""What Tune reserves for the process that leads a trial, bytes; it takes no CPU from the training it waits for."""

_QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
}


def run_sweep(
    sweep: SweepFile,
    directory: SweepDirectory,
    tasks: Sequence[TrialTask],
    concurrent: int,
    display: Display,
) -> str | None:
    """Run these trials, and draw how they come on; returns the signal that stopped the sweep, or None at its end.

    For the main thread, connected to Ray and holding the sweep's lock. A signal asks all trials for a checkpoint and
    lets no other one start; a second Ctrl-C ends at once. A trial that fails is recorded and the others go on.
    """
    directory.clear_stop_request()
    fit = threading.Thread(target=_fit, args=(sweep, directory, tasks, concurrent), daemon=True)
    with _stopping(directory, tasks) as received:
        fit.start()
        while fit.is_alive():
            fit.join(_POLL_S)
            display.update()
            if received and not _training(tasks):
                break  # what else is at work loses nothing when it is killed
    display.update(last=True)
    return received[0] if received else None


def _fit(sweep: SweepFile, directory: SweepDirectory, tasks: Sequence[TrialTask], concurrent: int) -> None:
    os.environ.update(_QUIET)
    import ray.tune

    kept = directory.path / ".tune"
    shutil.rmtree(kept, ignore_errors=True)
    by_index = dict(enumerate(tasks))

    def trainable(config: Mapping[str, Any], tasks: Mapping[int, TrialTask]) -> None:
        def validated(step: int, loss: float) -> None:
            ray.tune.report({"step": step, "validation_loss": loss})

        run_trial(tasks[config["index"]], validated)

    body = ray.tune.with_parameters(trainable, tasks=by_index)
    tuner = ray.tune.Tuner(
        ray.tune.with_resources(body, {"CPU": 0, "memory": _TRIAL_MEMORY}),
        param_space={"index": ray.tune.grid_search(list(by_index))},
        tune_config=ray.tune.TuneConfig(
            max_concurrent_trials=concurrent,
            scheduler=_scheduler(sweep, tasks),
            reuse_actors=True,
            trial_dirname_creator=lambda trial: str(trial.trial_id),
        ),
        run_config=ray.tune.RunConfig(
            name="tune",
            storage_path=str(kept),
            verbose=0,
            failure_config=ray.tune.FailureConfig(max_failures=sweep.config.ray.max_failures),
            callbacks=[_deaths(tasks)],
        ),
    )
    tuner.fit()
    shutil.rmtree(kept, ignore_errors=True)


def _deaths(tasks: Sequence[TrialTask]) -> Any:
    """Records a trial whose process died too often, and gives back what its workers reserve."""
    import ray.tune

    class Deaths(ray.tune.Callback):
        def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            task = tasks[trial.config["index"]]
            run = RunDirectory.open(task.trial.loaded)
            release_reservation(own_resources(run, task.resources))
            if outcome(run) == "waiting":
                run.set_status("failed", error="the trial's process died; Ray's logs are under the sweep's logs/")

    return Deaths()


def _scheduler(sweep: SweepFile, tasks: Sequence[TrialTask]) -> Any:
    """First come, first served; or asynchronous successive halving that stops a trial through its run directory.

    Tune would kill a trial that it stops, and with it the training's controller, whose workers' reservation nobody then
    gives back; a stop request ends the training after a checkpoint instead. What trials reported in earlier sessions is
    told to the scheduler first, so that a resumed sweep compares with all of them.
    """
    from ray.tune.schedulers import ASHAScheduler, FIFOScheduler

    settings = sweep.config.early_terminate
    if settings is None:
        return FIFOScheduler()  # type: ignore[no-untyped-call]
    longest = max(task.trial.loaded.config.train.steps for task in tasks)

    class GracefulASHA(ASHAScheduler):
        def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
            action: str = super().on_trial_result(tune_controller, trial, result)
            task = tasks[trial.config["index"]] if "index" in trial.config else None
            if action == self.STOP and task and result["step"] < task.trial.loaded.config.train.steps:
                task.sweep.trial(task.trial.name).request_stop(EARLY)
            return str(self.CONTINUE)

    scheduler = GracefulASHA(
        time_attr="step",
        metric="validation_loss",
        mode="min",
        max_t=longest,
        grace_period=min(settings.first, longest),
        reduction_factor=settings.eta,
        stop_last_trials=False,
    )
    _replay(scheduler, tasks)
    return scheduler


def _replay(scheduler: Any, tasks: Sequence[TrialTask]) -> None:
    """Tell the scheduler what the trials reported that ended in earlier sessions; those at work tell it themselves."""
    own = {task.trial.name for task in tasks}
    directory = tasks[0].sweep
    record = directory.read()
    assert record is not None
    for name in (entry["directory"] for entry in record["trials"] if entry["directory"] not in own):
        ended = SimpleNamespace(trial_id=name, config={})
        scheduler.on_trial_add(None, ended)
        for line in read_records(directory.trial(name).metrics):
            if VALIDATION_LOSS in line["tags"]:
                loss = line["tags"][VALIDATION_LOSS]
                scheduler.on_trial_result(None, ended, {"step": line["step"], "validation_loss": loss})


def _training(tasks: Sequence[TrialTask]) -> bool:
    """Whether a trial of this session is between its first step and its checkpoint."""
    return any(
        task.sweep.session_of(task.trial.name) == task.session
        and task.sweep.trial(task.trial.name).status()["state"] == "training"
        for task in tasks
    )


@contextmanager
def _stopping(directory: SweepDirectory, tasks: Sequence[TrialTask]) -> Iterator[list[str]]:
    """Signals become stop requests; yields the names of those received."""
    received: list[str] = []

    def ask(number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if name == "SIGINT" and name in received:
            raise KeyboardInterrupt
        received.append(name)
        directory.request_stop(name)
        for task in tasks:
            run = directory.trial(task.trial.name)
            if directory.session_of(task.trial.name) == task.session and outcome(run) == "waiting":
                run.request_stop(name)

    previous = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
