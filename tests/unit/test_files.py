import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from data_gen import local_ray
from icrl.files import (
    atomic_write,
    atomic_write_all,
    canonical_json,
    locked,
    read_json,
    require_free,
    sha256_bytes,
    sha256_file,
    sweep_partials,
    write_json,
)


def _hold(path, entered):
    with locked(path):
        entered.set()
        signal.pause()


def test_a_failed_write_leaves_the_old_file_and_no_orphan(tmp_path):
    target = tmp_path / "a.bin"
    atomic_write(target, b"old")

    def broken():
        yield b"new"
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        atomic_write(target, broken())
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]


def test_all_files_are_whole_before_the_first_takes_its_name(tmp_path):
    (tmp_path / "sub").mkdir()
    first, second = tmp_path / "a.bin", tmp_path / "sub" / "b.bin"
    atomic_write_all({first: [b"a", b"b"], second: [b"c"]})
    assert (first.read_bytes(), second.read_bytes()) == (b"ab", b"c")

    def broken():
        yield b"new"
        assert first.read_bytes() == b"ab"
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        atomic_write_all({first: [b"other"], second: broken()})
    assert (first.read_bytes(), second.read_bytes()) == (b"ab", b"c")
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == ["a.bin", "b.bin"]


def test_buffers_are_written_one_after_the_other(tmp_path):
    atomic_write(tmp_path / "a.bin", [b"ab", b"", b"c"])
    assert (tmp_path / "a.bin").read_bytes() == b"abc"
    assert sha256_file(tmp_path / "a.bin") == sha256_bytes(b"abc")


def test_sweep_removes_only_what_writers_left(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in (".x.json.12-ab.partial", "sub/.y.12-cd.partial", "sub/kept.partial.json", "kept.partial"):
        (tmp_path / name).write_text("x")
    assert sweep_partials(tmp_path) == 2
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == ["kept.partial", "kept.partial.json"]


def test_canonical_json_is_one_spelling():
    assert canonical_json({"b": [1.0, None], "a": "λ"}) == '{"a":"λ","b":[1.0,null]}'.encode()
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"a": float("nan")})


def test_broken_json_is_named(tmp_path):
    write_json(tmp_path / "a.json", {"x": 1})
    assert read_json(tmp_path / "a.json") == {"x": 1}
    (tmp_path / "a.json").write_text('{"x": ')
    with pytest.raises(ValueError, match=r"a\.json is not valid JSON"):
        read_json(tmp_path / "a.json")


def test_a_full_disk_is_named_before_anything_is_written(tmp_path):
    require_free(tmp_path / "not" / "there", 1)
    with pytest.raises(ValueError, match=r"not/there needs 1000000.0 TB and its disk has .* free"):
        require_free(tmp_path / "not" / "there", 10**18)
    assert list(tmp_path.iterdir()) == []


def test_a_lock_names_its_holder_and_dies_with_it(tmp_path):
    context = multiprocessing.get_context("spawn")
    entered = context.Event()
    holder = context.Process(target=_hold, args=(tmp_path / ".lock", entered))
    holder.start()
    assert entered.wait(30)
    with pytest.raises(ValueError, match=f"in use by process {holder.pid} on "), locked(tmp_path / ".lock"):
        pass
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    with locked(tmp_path / ".lock"):
        assert (tmp_path / ".lock").read_text().startswith(f"{os.getpid()} on ")
    assert (tmp_path / ".lock").read_text() == ""


def test_a_lock_that_is_a_link_is_refused_and_what_it_points_to_stays(tmp_path):
    (tmp_path / "precious").write_text("mine")
    (tmp_path / ".lock").symlink_to(tmp_path / "precious")
    with pytest.raises(ValueError, match=r"\.lock is a symbolic link"), locked(tmp_path / ".lock"):
        pass
    assert (tmp_path / "precious").read_text() == "mine"


def test_only_ones_own_directories_of_killed_commands_are_swept(tmp_path, monkeypatch):
    monkeypatch.setattr(local_ray, "_TMP", tmp_path)
    elsewhere = tmp_path / "elsewhere"
    killed, linked, foreign, lock_linked = (tmp_path / f"icrl-ray-{name}" for name in ("a", "b", "c", "d"))
    for path in (elsewhere, killed, foreign, lock_linked):
        path.mkdir()
        (path / "kept").touch()
    for path in (elsewhere, killed, foreign):
        (path / "lock").touch()
    linked.symlink_to(elsewhere)
    (elsewhere / "kept").write_text("mine")
    (lock_linked / "lock").symlink_to(elsewhere / "kept")
    uid, lstat = os.getuid(), Path.lstat

    def owned(path):
        status = list(lstat(path))
        status[4] = uid + (path == foreign)
        return os.stat_result(status)

    monkeypatch.setattr(Path, "lstat", owned)
    local_ray._sweep_leftovers()
    assert not killed.exists()
    assert (elsewhere / "kept").read_text() == "mine"
    assert all((path / "kept").exists() for path in (linked, foreign, lock_linked))
