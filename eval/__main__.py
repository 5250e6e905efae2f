"""`python -m eval RUN_DIR [eval.key=value ...]`: what a trained run is worth."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Annotated

import typer

from icrl import cli
from icrl.config import Config, ConfigError, Problem, dump, override
from icrl.mirror import working_on
from icrl.run_dir import RunDirectory

app = cli.application("Evaluate a trained run: regret in fresh environments, and imitation of its expert.")

RunPath = Annotated[
    str, typer.Argument(help="Run directory, written by python -m train, or s3://bucket/prefix.", metavar="RUN_DIR")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Values of the eval section, for example eval.environments=2000.", metavar="eval.key=value"),
]
Force = Annotated[bool, typer.Option("--force", help="Evaluate again even where the results are there.")]


def overridden(config: Config, overrides: Sequence[str]) -> Config:
    """The run's config with values of its eval section changed.

    Raises:
        ValueError: an unknown option, or a key of another section.
    """
    problems = []
    for entry in overrides:
        key, equals, text = entry.removeprefix("--").partition("=")
        if entry.startswith("-") and not equals:
            raise ValueError(f"unknown option {entry}: see --help; a value is changed with eval.key=value")
        if key != "eval" and not key.startswith("eval."):
            expected = "a key of the eval section, eval.key=value"
            remedy = "the rest is what the run was trained with: to change it, train another run"
            problems.append(Problem(key, text, expected, remedy, "command line"))
    if problems:
        raise ConfigError(problems)
    return override(config, overrides)


@app.command(context_settings=cli.LENIENT)
def main(
    run_dir: RunPath,
    overrides: Overrides = None,
    dry_run: cli.DryRun = False,
    print_config: cli.PrintConfig = False,
    force: Force = False,
) -> None:
    """Evaluate a trained run: regret in fresh environments beside its teacher and the baselines, and imitation.

    Exit codes: 0 done, 1 an expectation of eval.expect was missed, 2 bad usage. The same command again only prints.
    """
    with cli.session(working_on(run_dir)) as run:
        _evaluate(run, overrides, dry_run=dry_run, print_config=print_config, force=force)


def _evaluate(
    run: RunDirectory, overrides: Sequence[str] | None, *, dry_run: bool, print_config: bool, force: bool
) -> None:
    with cli.usage_errors():
        config = overridden(run.config(), overrides or ())
        if print_config:
            typer.echo(dump(config), nl=False)
            return
        from eval.line_up import line_up
        from eval.results import table
        from eval.run import check, evaluate_run

        model = check(run, config)
    if dry_run:
        cli.say(f"run             {run.path}")
        cli.say(f"environments    {config.eval.environments:,} of horizon {config.environment.horizon}")
        cli.say(f"algorithms      {', '.join(f'{entrant.name} ({entrant.role})' for entrant in line_up(config))}")
        cli.say(f"parameters      {model.num_parameters()['total']:,}")
        cli.say(f"would write     {run.results}")
        return
    try:
        with contextlib.ExitStack() as held:
            with cli.usage_errors():
                held.enter_context(run.lock())
            results = evaluate_run(run, config, progress=lambda line: typer.echo(line, err=True), force=force)
    except KeyboardInterrupt:
        typer.echo("stopped; the same command begins again", err=True)
        raise typer.Exit(cli.INTERRUPTED) from None
    cli.say(table(results))
    cli.say()
    cli.say(f"results: {run.results}, {run.figures / 'regret.png'}")
    if not results.passed:
        cli.say("next: train for longer, with a larger model or on more data, and evaluate again")
        raise typer.Exit(cli.FAILED)
    cli.say(f"next: python -m cluster board {run.path}")


if __name__ == "__main__":
    app()
