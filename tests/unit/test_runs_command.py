"""`python -m cluster runs` and what `board` refuses: real run directories, the commands in this process."""

from __future__ import annotations

import json
import shlex
import socket
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import cluster.board
from cluster.__main__ import app
from cluster.board import entries, refresh, remote_host, serving, tunnel, wait
from cluster.runs import find, named, remove
from cluster.sweep_state import SweepDirectory
from icrl.board import Board, choose_hparams, event_files
from icrl.config import load
from icrl.files import write_json
from icrl.run_dir import RunDirectory


def new_run(root: Path, *overrides: str, state: str = "done") -> RunDirectory:
    run = RunDirectory.open(load("configs/demo.yaml", [f"storage.root={root}", *overrides]))
    run.set_status(state, step=100)  # type: ignore[arg-type]
    board = Board(run, keep=lambda record: True)
    board.scalars(100, {"train/loss": 1.0})
    board.close()
    return run


def command(*arguments: object, code: int = 0, answer: str | None = None) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=answer)
    assert result.exit_code == code, result.output
    return result


@pytest.fixture
def root(tmp_path: Path) -> Path:
    new_run(tmp_path)
    new_run(tmp_path, "seed=1", state="training")
    trial = new_run(
        tmp_path, "seed=2", "model.embed_dim=16", "run.dir=runs/capacity/trials/0003-12345678", state="stopped"
    )
    choose_hparams(trial, {"model.embed_dim": 16, "seed": 2, "model.attention": "relu/a b"})
    return tmp_path


def test_list_tells_states_apart(root: Path) -> None:
    listed = json.loads(command("runs", "list", "--root", root, "--json").stdout)
    states = sorted((entry["name"].split("-")[0], entry["state"]) for entry in listed)
    assert states == [("capacity/trials/0003", "stopped"), ("demo", "crashed"), ("demo", "done")]
    assert all(entry["bytes"] > 1000 and entry["step"] == 100 and entry["steps"] == 2000 for entry in listed)
    crashed = next(entry for entry in listed if entry["state"] == "crashed")
    with RunDirectory(Path(crashed["path"])).lock():
        again = json.loads(command("runs", "list", "--root", root, "--json").stdout)
    assert next(e["state"] for e in again if e["name"] == crashed["name"]) == "training", "held by its worker"
    text = command("runs", "list", "--root", root).stdout.splitlines()
    assert text[0].split() == ["run", "state", "step", "x", "teacher", "age", "size"]
    assert text[-1].startswith("3 runs, ")
    assert "no runs below" in command("runs", "list", "--root", root / "elsewhere").stdout


def test_a_run_is_named_by_its_directory_its_name_or_a_unique_beginning(root: Path) -> None:
    runs = root / "runs"
    trial = runs / "capacity/trials/0003-12345678"
    for name in (str(trial), "capacity/trials/0003-12345678", "0003-12345678", "capacity", "0003"):
        assert [found.run.path for found in named(runs, [name])] == [trial], name
    assert named(runs, ["0003", str(trial)]) == named(runs, ["0003"]), "once"
    with pytest.raises(ValueError, match="got 2 runs: demo-"):
        named(runs, ["demo"])
    for unknown in ("nothing", "", "."):
        with pytest.raises(ValueError, match="got none of that name"):
            named(runs, [unknown])


def test_show_and_diff(root: Path) -> None:
    shown = command("runs", "show", "0003", "--root", root).stdout
    assert "state           stopped, step 100 of 2,000" in shown
    assert "model.embed_dim = 16\n" in shown
    assert "model.mlp_dim" not in shown, "the default"
    assert "no results yet" in shown
    one, other = (found.name for found in find(root / "runs") if found.name.startswith("demo"))
    assert "seed: " in command("runs", "diff", one, other, "--root", root).stdout
    assert "  the same\n" in command("runs", "diff", one, one, "--root", root).stdout


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("resolved.yaml", "no_such_key: 1\n"),
        ("status.json", '{"state": "do'),
        ("run.json", "{}"),
        ("status.json", "[]"),
    ],
)
def test_one_damaged_run_keeps_no_other_from_being_listed_shown_and_removed(
    root: Path, name: str, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged, other = (found for found in find(root / "runs") if found.name.startswith("demo"))
    (damaged.run.path / name).write_text(content)
    listed = {entry["name"]: entry for entry in json.loads(command("runs", "list", "--root", root, "--json").stdout)}
    assert len(listed) == 3
    assert [entry["state"] for entry in listed.values()].count("damaged") == 1
    assert listed[damaged.name]["state"] == "damaged"
    assert listed[damaged.name]["bytes"] > 1000
    assert "damaged" in command("runs", "list", "--root", root).stdout
    with serving(root / "runs", 0) as (_, again):
        again()
    assert event_files(damaged.run.path)
    capsys.readouterr()
    removed = command("runs", "rm", damaged.name, other.name, "--root", root, "--yes").output
    assert "removed 2 runs, " in removed
    assert len(find(root / "runs")) == 1


def test_a_board_outlives_a_run_that_is_removed_while_it_looks(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = iter([FileNotFoundError("removed"), None, KeyboardInterrupt()])

    def look() -> None:
        if error := next(looks):
            raise error

    monkeypatch.setattr(cluster.board, "_REFRESH_S", 0.0)
    with pytest.raises(KeyboardInterrupt):
        wait(look)
    (found,) = [found for found in find(root / "runs") if found.name.startswith("capacity")]
    (found.run.path / "hparams.json").write_text("[1")
    assert "capacity/0003-12345678" in entries(root / "runs")


def test_rm_asks_and_says_what_it_frees(root: Path) -> None:
    trial = root / "runs/capacity/trials/0003-12345678"
    refused = command("runs", "rm", "0003", "--root", root, answer="n\n", code=1)
    assert "nothing was removed" in refused.output
    assert trial.exists()
    removed = command("runs", "rm", "0003", "--root", root, "--yes")
    assert "removed 1 run, " in removed.output
    assert "kB freed" in removed.output
    assert not trial.exists()
    assert list(trial.parent.iterdir()) == []
    assert len(find(root / "runs")) == 2


@pytest.mark.parametrize("lock", [RunDirectory.lock, RunDirectory.training_lock])
def test_rm_leaves_a_run_in_use_and_everything_named_beside_it(
    lock: Callable[[RunDirectory], AbstractContextManager[None]], root: Path
) -> None:
    first, other = (found for found in find(root / "runs") if found.name.startswith("demo"))
    with lock(first.run):
        result = command("runs", "rm", first.name, other.name, "--root", root, "--yes", code=2)
        with pytest.raises(ValueError, match="in use"):
            remove(first)
    assert "in use" in result.output
    assert first.run.path.exists()
    assert other.run.path.exists()


def test_rm_of_a_sweep_takes_all_of_it_or_nothing(root: Path) -> None:
    sweep = root / "runs" / "capacity"
    write_json(sweep / "sweep.json", {"version": 1})
    (sweep / "table.csv").write_text("trial\n")
    (trial,) = [found for found in find(root / "runs") if found.name.startswith("capacity")]
    with trial.run.lock():
        assert "in use" in command("runs", "rm", "capacity", "--root", root, "--yes", code=2).output
    with SweepDirectory(sweep).lock():
        assert "error: " in command("runs", "rm", "capacity", "--root", root, "--yes", code=2).output
    assert (sweep / "sweep.json").exists()
    assert trial.run.path.exists()
    removed = command("runs", "rm", "capacity", "0003", "--root", root, "--yes").output
    assert "capacity  sweep of 1 run" in removed
    assert "removed 1 run, " in removed
    assert [path.name for path in (root / "runs").iterdir() if not path.name.startswith("demo-")] == []


def test_what_a_killed_rm_has_left_is_swept_by_the_next_command(root: Path) -> None:
    demo, trial = (next(f.run.path for f in find(root / "runs") if f.name.startswith(n)) for n in ("demo", "cap"))
    left = [path.rename(path.with_name(f".{path.name}.0123abcd.removed")) for path in (demo, trial)]
    other = root / "runs" / ".mine.removed"
    other.mkdir()
    with RunDirectory(left[0]).lock():  # its command is at it
        command("runs", "list", "--root", root)
        assert [path.exists() for path in left] == [True, False]
    command("runs", "list", "--root", root)
    assert not left[0].exists()
    assert other.exists()
    assert len(find(root / "runs")) == 1


def test_rm_never_leaves_the_root(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = new_run(tmp_path_factory.mktemp("outside"))
    (root / "runs" / "link").symlink_to(outside.path)
    for name in (outside.path, root / "runs" / "link", f"{root}/runs/../runs", "/", ".."):
        result = command("runs", "rm", name, "--root", root, "--yes", code=2)
        assert "error: RUN = " in result.output
    assert (outside.path / "run.json").exists()
    assert len(find(root / "runs")) == 3


def test_names_on_the_board_read_well(root: Path, tmp_path: Path) -> None:
    runs = root / "runs"
    names = list(entries(runs))
    assert names[0] == "capacity/0003 embed_dim=16 seed=2 attention=relu a b"
    assert all(name.startswith("demo-") for name in names[1:])
    (only,) = entries(runs / names[1])
    assert only == names[1], "a run alone is not called after a dot"
    view = tmp_path / "view"
    refresh(runs, view)
    assert {str(p.relative_to(view)) for p in view.rglob("*") if p.is_symlink()} == set(names)
    remove(named(runs, ["0003"])[0])
    new_run(root, "seed=9")
    refresh(runs, view)
    links = {str(p.relative_to(view)): p.resolve() for p in view.rglob("*") if p.is_symlink()}
    assert links == {found.name: found.run.path for found in find(runs)}


def test_board_refuses_what_has_nothing_to_show(tmp_path: Path) -> None:
    assert "got nothing there" in command("board", tmp_path / "none", code=2).output
    (tmp_path / "empty" / "logs").mkdir(parents=True)
    result = command("board", tmp_path / "empty", code=2)
    assert "expected event files" in result.output
    assert "python -m cluster run" in result.output


def test_a_taken_port_is_an_error_with_its_remedy(root: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = command("board", root / "runs", "--port", port, code=2)
    assert result.output == f"error: --port {port}: something listens there already; --port 0 takes a free one\n"


def test_a_remote_board_is_one_ssh_command(tmp_path: Path) -> None:
    printed = command("board", "/data/my runs", "--address", "http://head:8265", "--port", 17006, "--dry-run").stdout
    assert printed == (
        "ssh -tt -o ExitOnForwardFailure=yes -L 127.0.0.1:17006:127.0.0.1:17006 head "
        "'cd '\"'\"'/data/my runs'\"'\"' && "
        "exec python3 -m tensorboard.main --logdir . --host 127.0.0.1 --port 17006'\n"
    )
    assert tunnel("me@head", "/runs", 1, "/venv/bin/python")[-2] == "me@head"
    relative = command("board", "runs", "--address", "http://head:8265", "--dry-run", code=2)
    assert "expected an absolute path on head" in relative.output
    assert "expected a cluster's address" in command("board", "/runs", "--address", "http://", code=2).output


@pytest.mark.parametrize(
    ("address", "host"),
    [
        ("http://head:8265", "head"),
        ("https://10.0.0.7:8265/", "10.0.0.7"),
        ("head.example.org", "head.example.org"),
        ("http://127.0.0.1:8265", None),
        ("http://localhost:8265", None),
        ("http://[::1]:8265", None),
    ],
)
def test_the_host_of_an_address(address: str, host: str | None) -> None:
    assert remote_host(address) == host


def test_the_commands_of_the_page_on_boards_run_as_they_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [line for line in Path("docs/boards.md").read_text().splitlines() if line.startswith("python -m cluster ")]
    assert len(lines) >= 10
    new_run(tmp_path, "run.dir=runs/demo-02740ccf")
    new_run(tmp_path, "run.dir=runs/demo-ed66e683", "seed=1")
    new_run(tmp_path, "run.dir=runs/capacity/trials/0000-12345678")
    monkeypatch.chdir(tmp_path)
    for line in lines:
        arguments = shlex.split(line.partition("#")[0].replace("/mnt/icrl", "."))[3:]
        # a board would stay until Ctrl-C
        dry = ["--dry-run"] if arguments[0] == "board" and "--dry-run" not in arguments else []
        assert command(*arguments, *dry).stdout, line
    assert [found.name for found in find(tmp_path / "runs")] == ["capacity/trials/0000-12345678", "demo-02740ccf"]
