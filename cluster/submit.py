"""From the command a user wants run on a cluster to the job that runs it: checked here, packaged, named, described."""

from __future__ import annotations

import os
import re
import shlex
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.jobs import ENDED, GRACE, Jobs
from cluster.package import CHECKOUT, Package
from data_gen.local_ray import QUIET
from icrl.cli import absolute_root
from icrl.config import NAME_PATTERN, Loaded, config_hash, dump, load
from icrl.files import canonical_json, sha256_bytes
from icrl.mirror import require_no_mirror
from icrl.run_dir import COMMIT_VARIABLE, commit, default_path

_FLAGS = {
    "run": frozenset({"--verbose", "-v"}),
    "sweep": frozenset({"--verbose", "-v", "--retry-failed", "--accept-changes"}),
}
"""The commands of a job, and what of their options makes sense there."""
_CARRIED = "submitted.yaml"
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSW", re.IGNORECASE)


@dataclass(frozen=True)
class Inner:
    """The command to run in the job, checked."""

    words: tuple[str, ...]
    """As given: run CONFIG key=value ..."""
    entrypoint: tuple[str, ...]
    """As it reads from inside the package."""
    file: str | None
    """The config in the checkout; None: it is carried."""
    carried: dict[str, str]
    """Files that the package needs beside the checkout's."""
    name: str
    digest: str
    root: str
    """`storage.root` as given."""
    directory: Path
    """Where results go, with the root taken against the caller's directory."""


def check_inner(words: Sequence[str]) -> Inner:
    """Every check of the command that does not need the cluster.

    Raises:
        ConfigError, ValueError: it would not run.
    """
    if not words or words[0] not in _FLAGS:
        given = words[0] if words else "nothing"
        raise ValueError(f"a job's command begins with {' or '.join(_FLAGS)}, got {given}: submit -- run CONFIG")
    rest = list(words[1:])
    flags = [word for word in rest if word.startswith("-") and "=" not in word]
    positional = [word for word in rest if word not in flags]
    if unknown := [flag for flag in flags if flag not in _FLAGS[words[0]]]:
        raise ValueError(f"{unknown[0]} is not for a command in a job; options of submit come before --")
    if not positional:
        raise ValueError(f"{words[0]} needs a file: submit -- {words[0]} CONFIG [key=value ...]")
    path, overrides = Path(positional[0]), positional[1:]
    check = _check_run if words[0] == "run" else _check_sweep
    return check(path, overrides, flags)


def _check_run(path: Path, overrides: Sequence[str], flags: Sequence[str]) -> Inner:
    from eval.line_up import check as check_line_up
    from icrl.model import Transformer

    loaded = load(path, overrides)
    require_no_mirror(loaded.config, "a job, whose nodes need not share a disk")
    Transformer(loaded.config.model, loaded.config.environment)
    check_line_up(loaded.config)
    inside = _inside(path)
    carried = {} if inside else {_CARRIED: _flat(loaded)}
    words = [inside, *overrides] if inside else [_CARRIED]
    return Inner(
        words=("run", *flags, str(path), *overrides),
        entrypoint=("run", *flags, *words),
        file=inside,
        carried=carried,
        name=loaded.config.name,
        digest=config_hash(loaded.config),
        root=loaded.config.storage.root,
        directory=default_path(absolute_root(loaded).config),
    )


def _check_sweep(path: Path, overrides: Sequence[str], flags: Sequence[str]) -> Inner:
    from cluster.sweep_file import is_sweep, quick_grid, read_sweep
    from cluster.sweep_trials import check_metric, directory, expand
    from eval.line_up import check as check_line_up
    from icrl.model import Transformer

    sweep = read_sweep(path, overrides) if is_sweep(path) else quick_grid(path, overrides)
    trials = expand(sweep)
    check_metric(sweep, trials)
    for trial in trials:
        Transformer(trial.loaded.config.model, trial.loaded.config.environment)
        check_line_up(trial.loaded.config)
    inside = _inside(path)
    if inside is None:
        raise ValueError(
            f"{path}: expected a sweep under {CHECKOUT}, which is what travels; move it into configs/sweeps"
        )
    place = directory(sweep, trials)
    root = load(sweep.base, sweep.fixed).config.storage.root
    return Inner(
        words=("sweep", *flags, str(path), *overrides),
        entrypoint=("sweep", *flags, inside, *overrides),
        file=inside,
        carried={},
        name=Path(place).name,
        digest=sha256_bytes(canonical_json(sorted(trial.hash for trial in trials)))[:8],
        root=root,
        directory=Path(root).expanduser().absolute() / place,
    )


def _flat(loaded: Loaded) -> str:
    """A config from outside the checkout, with its defaults and overrides in it."""
    return f"# {loaded.path} {' '.join(loaded.overrides)}\n{dump(loaded.config)}"


def _inside(path: Path) -> str | None:
    """The path relative to the checkout, if it lies there."""
    resolved = path.resolve()
    return resolved.relative_to(CHECKOUT).as_posix() if resolved.is_relative_to(CHECKOUT) else None


@dataclass(frozen=True)
class Submission:
    """What is about to be sent."""

    inner: Inner
    package: Package
    prefix: str
    """The job is called <prefix>-<attempt>."""
    root: Path
    grace: int

    @property
    def entrypoint(self) -> str:
        words = [word for word in self.inner.entrypoint if not word.lstrip("-").startswith("storage.root=")]
        words = ["python", "-m", "cluster", *words, f"storage.root={self.root}", "--address", "auto"]
        return "exec " + shlex.join(words)  # without a shell in between, signals and exit codes are the command's own

    @property
    def directory(self) -> str:
        """Where results go."""
        return str(self.inner.directory)

    def metadata(self) -> dict[str, str]:
        return {
            "commit": commit() or "",
            "config_hash": self.inner.digest,
            "directory": self.directory,
            "command": shlex.join(["submit", "--", *self.inner.words]),
        }

    def variables(self) -> dict[str, str]:
        """Environment variables of the job; the dashboard shows them, so no secret is among them."""
        ours = {
            name: value for name, value in os.environ.items() if name.startswith("ICRL_") and not _SECRET.search(name)
        }
        return {**ours, **QUIET, GRACE: str(self.grace), COMMIT_VARIABLE: commit() or ""}

    def describe(self) -> str:
        return "\n".join(
            [
                f"job             {self.prefix}-<attempt>",
                f"command         {self.entrypoint.removeprefix('exec ')}",
                f"package         {self.package.describe()}",
                f"results         {self.directory}",
                f"stop grace      {self.grace} s",
            ]
        )


def prepare(inner: Inner, *, name: str | None, exclude: Sequence[str], grace: int) -> Submission:
    """The job of a command.

    Raises:
        ValueError: a bad name, or a package that is too large.
    """
    if name is not None and not NAME_PATTERN.fullmatch(name):
        raise ValueError(f"--name {name}: expected lower-case letters, digits, dots, dashes and underscores")
    package = Package.of(exclude=exclude)
    if inner.file is not None and Path(inner.file) not in package.files:
        raise ValueError(
            f"{inner.file} is not among what travels (data, runs and caches do not): move it into configs/"
        )
    return Submission(
        inner,
        package,
        f"{name or inner.name}-{inner.digest}",
        Path(inner.root).expanduser().absolute(),
        grace,
    )


def require_absolute(inner: Inner, where: str) -> None:
    """Refuse a storage root that means something else on the cluster.

    Raises:
        ValueError: names the remedy.
    """
    if not Path(inner.root).is_absolute():
        raise ValueError(
            f"storage.root = {inner.root!r}: expected an absolute path for {where}, whose nodes do not have this "
            "directory; add storage.root=/shared/path, a directory that all of them mount"
        )


def send(jobs: Jobs, job: Submission) -> tuple[str, bool]:
    """Submit it, unless the same command runs already; the submission id, and whether it is new."""
    while True:
        attempts = jobs.attempts(job.prefix)
        for attempt in attempts:
            if str(attempt.status) not in ENDED and (attempt.metadata or {}).get("directory") == job.directory:
                return str(attempt.submission_id), False
        number = int(attempts[-1].submission_id.rpartition("-")[2]) + 1 if attempts else 1
        identifier = f"{job.prefix}-{number}"
        with tempfile.TemporaryDirectory(prefix="icrl-submit-") as scratch:
            package = job.package.write(Path(scratch) / "package.zip", job.inner.carried)
            runtime_env: dict[str, Any] = {"working_dir": str(package), "env_vars": job.variables()}
            try:
                jobs.client.submit_job(
                    entrypoint=job.entrypoint,
                    submission_id=identifier,
                    runtime_env=runtime_env,
                    metadata=job.metadata(),
                )
            except RuntimeError as error:
                if "already exists" not in str(error):
                    raise
                continue  # another submit took the number; look again
        return identifier, True
