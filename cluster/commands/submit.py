"""`python -m cluster submit -- run CONFIG`: a command as a job of a Ray cluster."""

from __future__ import annotations

from typing import Annotated

import typer

from cluster.commands.jobs import follow_to_the_end
from cluster.commands.options import DashboardAddress, PlainHttp
from icrl import cli

_GRACE_S = 60


def submit(
    command: Annotated[
        list[str] | None, typer.Argument(metavar="-- COMMAND ...", help="run CONFIG or sweep FILE, with its values.")
    ] = None,
    address: DashboardAddress = None,
    name: Annotated[str | None, typer.Option("--name", help="In place of the config's name in the job's.")] = None,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Do not follow the log.")] = False,
    grace: Annotated[
        int, typer.Option("--grace", min=1, help="Seconds that a stop leaves for a checkpoint.")
    ] = _GRACE_S,
    exclude: Annotated[list[str] | None, typer.Option("--exclude", help="Name or path that is not sent.")] = None,
    plain_http: PlainHttp = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check, print the job and send nothing.")] = False,
) -> None:
    """Run a command as a job on a Ray cluster, follow it, and end as it ends.

    The job is called NAME-HASH-ATTEMPT. Submitting a command that runs already follows it; one that was stopped or
    failed resumes, as a new attempt.
    """
    with cli.usage_errors():
        from cluster.jobs import Jobs, is_loopback, require_address, usual_address
        from cluster.submit import check_inner, prepare, require_absolute, send

        url = usual_address(address)
        require_address(url, plain_http=plain_http)
        inner = check_inner(command or [])
        if not is_loopback(url):
            require_absolute(inner, url)
        job = prepare(inner, name=name, exclude=exclude or (), grace=grace)
        if dry_run:
            cli.say(job.describe())
            return
        jobs = Jobs.at(url, plain_http=plain_http)
        if not jobs.local:
            require_absolute(inner, f"{url} ({', '.join(sorted(jobs.hosts))})")
        try:
            identifier, fresh = send(jobs, job)
        except RuntimeError as error:
            raise ValueError(f"{url} did not take the job: {error}") from error
    cli.say(f"job             {identifier} {'' if fresh else '(runs already)'}".rstrip())
    cli.say(f"package         {job.package.describe()}")
    cli.say(f"results         {job.directory}")
    if no_wait:
        cli.say(
            f"next            python -m cluster logs -f {identifier}{'' if address is None else f' --address {url}'}"
        )
        return
    raise typer.Exit(follow_to_the_end(jobs, identifier))
