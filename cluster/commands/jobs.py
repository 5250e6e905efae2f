"""`python -m cluster status|logs|stop|list`: the jobs that `submit` sent to a cluster."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.commands.options import DashboardAddress, PlainHttp
from icrl import cli

if TYPE_CHECKING:
    from cluster.jobs import Jobs

Job = Annotated[str, typer.Argument(metavar="JOB", help="A job's name; without its -ATTEMPT, the latest one.")]
_SHOWN = 20
_BEYOND_GRACE_S = 20.0
"""What a job may take to end after its grace: Ray kills it then."""


def status(job: Job, address: DashboardAddress = None, plain_http: PlainHttp = False) -> None:
    """What a job is doing, and what it is."""
    _, found = _find(job, address, plain_http)
    details = found.metadata or {}
    rows = [
        ("job", found.submission_id),
        ("status", _status(found)),
        ("started", _clock(found.start_time)),
        ("duration", _duration(found)),
        ("command", details.get("command", found.entrypoint)),
        ("results", details.get("directory", "")),
        ("config hash", details.get("config_hash", "")),
        ("commit", details.get("commit", "")),
    ]
    for label, value in rows:
        cli.say(f"{label:<15} {value}".rstrip())


def logs(
    job: Job,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Until the job ends; then end as it ended.")] = False,
    address: DashboardAddress = None,
    plain_http: PlainHttp = False,
) -> None:
    """What a job has printed."""
    jobs, found = _find(job, address, plain_http)
    if follow:
        raise typer.Exit(follow_to_the_end(jobs, found.submission_id))
    typer.echo(jobs.client.get_job_logs(found.submission_id), nl=False)


def stop(
    job: Job,
    timeout: Annotated[
        float | None, typer.Option("--timeout", help="Seconds to wait for the end; by default the job's grace and 20.")
    ] = None,
    address: DashboardAddress = None,
    plain_http: PlainHttp = False,
) -> None:
    """Stop a job: it writes a checkpoint first, and submitting its command again resumes."""
    jobs, found = _find(job, address, plain_http)
    from cluster.jobs import ENDED, GRACE

    name = found.submission_id
    if str(found.status) in ENDED:
        cli.say(f"{name} has ended already: {_status(found)}")
        return
    variables = (found.runtime_env or {}).get("env_vars", {})
    patience = float(variables.get(GRACE, 3)) + _BEYOND_GRACE_S if timeout is None else timeout
    with cli.usage_errors():
        reached = jobs.stop(name, patience)
    if reached not in ENDED:
        cli.say(f"{name} is still {reached} after {patience:.0f} s; look again with: python -m cluster status {name}")
        raise typer.Exit(cli.FAILED)
    cli.say(f"{name} {reached}")
    if command := (found.metadata or {}).get("command"):
        cli.say(f"next            python -m cluster {command}")


def list_jobs(address: DashboardAddress = None, plain_http: PlainHttp = False) -> None:
    """The latest jobs of a cluster."""
    jobs = _reach(address, plain_http)
    found = jobs.all()
    if not found:
        cli.say("no jobs; send one with: python -m cluster submit -- run configs/demo.yaml")
    width = max((len(job.submission_id) for job in found), default=0)
    for job in found[-_SHOWN:]:
        directory = (job.metadata or {}).get("directory", "")
        times = f"{_clock(job.start_time)}  {_duration(job):>8}"
        cli.say(f"{job.submission_id:<{width}}  {_status(job):<14} {times}  {directory}".rstrip())


def follow_to_the_end(jobs: Jobs, job: str) -> int:
    """Print a job's log until it ends; the exit code to end with. Ctrl-C leaves the job at work."""
    from cluster.jobs import losing_the_head

    try:
        with cli.usage_errors(), losing_the_head(jobs.url):
            jobs.follow(job, lambda text: typer.echo(text, nl=False))
            info = jobs.info(job)
            code = jobs.outcome(job)
    except KeyboardInterrupt:
        cli.say(f"\n{job} goes on; python -m cluster logs -f {job} follows it, python -m cluster stop {job} stops it")
        return cli.INTERRUPTED
    if str(info.status) == "FAILED" and info.driver_exit_code is None:
        cli.say(f"the job did not start: {info.message}")
    cli.say(f"job             {job} {_status(info)}")
    return code


def _reach(address: str | None, plain_http: bool) -> Jobs:
    with cli.usage_errors():
        from cluster.jobs import Jobs, usual_address

        return Jobs.at(usual_address(address), plain_http=plain_http)


def _find(job: str, address: str | None, plain_http: bool) -> tuple[Jobs, Any]:
    jobs = _reach(address, plain_http)
    with cli.usage_errors():
        return jobs, jobs.find(job)


def _status(job: Any) -> str:
    code = job.driver_exit_code
    return f"{job.status} ({code})" if code else str(job.status)


def _clock(milliseconds: int | None) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(milliseconds / 1000)) if milliseconds else "-"


def _duration(job: Any) -> str:
    if not job.start_time:
        return "-"
    seconds = (job.end_time or 1000 * time.time()) / 1000 - job.start_time / 1000
    return f"{seconds:.0f} s"
