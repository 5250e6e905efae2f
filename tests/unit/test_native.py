"""Compiling kernels on first use: the cache, its guards, and what is said where there is no compiler."""

import ctypes
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from icrl import native
from icrl.native import build as building
from icrl.native import isa as isas

SOURCE = """
#include "threads.h"
#include "twice.h"
using namespace icrl;
// squares of 0 .. items-1, and which thread made each
ICRL_EXPORT void squares(long items, int threads, long* out, int* made_by) {
  parallel(items, threads, [=](long item, int thread) { out[item] = item * item; made_by[item] = thread; });
}
ICRL_EXPORT int width() { return kVectorBytes; }
ICRL_EXPORT double twice(double x) { return TWICE * x; }
ICRL_EXPORT void round_trip(int kind, long n, const float* in, float* out) {
  for (long i = 0; i < n; ++i)
    out[i] = kind == 0 ? widen(narrow<BFloat16>(in[i])) : widen(narrow<Half>(in[i]));
}
"""
WIDTHS = {"avx512": 64, "avx2": 32, "sse2": 16, "baseline": 16}


def forget():
    """What a new process knows."""
    for remembered in (building._chosen, building._built, building._compiler, building._log_once):
        remembered.cache_clear()


@pytest.fixture(autouse=True)
def fresh_memory():
    forget()


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.setenv("ICRL_CACHE_DIR", str(tmp_path / "cache"))
    for name in ("ICRL_NATIVE", "ICRL_NATIVE_ISA"):
        monkeypatch.delenv(name, raising=False)
    path = tmp_path / "squares.cpp"
    path.write_text(SOURCE)
    (tmp_path / "twice.h").write_text("#define TWICE 2.0\n")
    return path


def entries(tmp_path):
    return sorted(path.name for path in (tmp_path / "cache" / "native").iterdir())


def doubled(loaded, x):
    loaded.twice.restype, loaded.twice.argtypes = ctypes.c_double, [ctypes.c_double]
    return loaded.twice(x)


@pytest.mark.parametrize("isa", native.machine_isas())
def test_each_instruction_set_is_compiled_once_and_runs(isa, source, tmp_path, monkeypatch):
    monkeypatch.setenv("ICRL_NATIVE_ISA", isa)
    loaded = native.library(source)
    assert loaded.width() == WIDTHS[isa]
    assert native.library(source) is loaded
    for items, threads in [(0, 3), (1, 4), (1000, 1), (1000, 7)]:
        out, made_by = (ctypes.c_long * items)(), (ctypes.c_int * items)()
        loaded.squares(ctypes.c_long(items), threads, out, made_by)
        assert list(out) == [i * i for i in range(items)]
        assert set(made_by) <= set(range(min(threads, items)))
    (entry,) = entries(tmp_path)
    assert entry.startswith(f"squares-{isa}-")
    monkeypatch.setattr(building, "_compile", None)  # a second process finds the entry
    forget()
    assert native.library(source).width() == WIDTHS[isa]


@pytest.mark.parametrize("isa", native.machine_isas())
def test_small_floats_round_as_torch_rounds_them(isa, source):
    torch = pytest.importorskip("torch")
    bits = torch.randint(-(2**31), 2**31 - 1, (200_000,), generator=torch.Generator().manual_seed(0), dtype=torch.int64)
    halves = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.float16).float()
    edges = torch.tensor([0.0, -0.0, 65504, 65519.9, 65520, 1e9, -torch.inf, torch.nan, 2**-14, 2**-24, 2**-25, 1e-40])
    inputs = torch.cat([bits.to(torch.int32).view(torch.float32), halves, halves * (1 + 2**-11), edges])
    for kind, dtype in enumerate((torch.bfloat16, torch.float16)):
        out = torch.full_like(inputs, 7.0)
        native.library(source, isa=isa).round_trip(
            kind, ctypes.c_long(len(inputs)), ctypes.c_void_p(inputs.data_ptr()), ctypes.c_void_p(out.data_ptr())
        )
        expected = inputs.to(dtype).float()
        assert torch.equal(out.isnan(), expected.isnan())
        assert torch.equal(out.nan_to_num().view(torch.int32), expected.nan_to_num().view(torch.int32))


def test_a_changed_header_is_another_entry(source, tmp_path):
    assert doubled(native.library(source), 4.0) == 8.0
    (tmp_path / "twice.h").write_text("#define TWICE 3.0\n")
    forget()
    assert doubled(native.library(source), 4.0) == 12.0
    assert len(entries(tmp_path)) == 2


def test_a_spoilt_entry_is_made_anew(source, tmp_path):
    native.library(source)
    (entry,) = entries(tmp_path)
    place = tmp_path / "cache" / "native" / entry
    place.unlink()  # another file: the loaded one must keep its pages
    place.write_bytes(b"\x7fELF cut short")
    forget()
    assert doubled(native.library(source), 1.0) == 2.0


def child(source, *, compiler=None):
    """A process that loads the library; waits for its standard input to close first."""
    program = (
        "import sys; from pathlib import Path; from icrl import native; sys.stdin.read(); "
        f"print(native.library(Path({str(source)!r})).width())"
    )
    return subprocess.Popen(
        [sys.executable, "-c", program],
        env=os.environ | ({"CXX": str(compiler)} if compiler else {}),
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )


def test_processes_compile_at_once(source, tmp_path):
    children = [child(source) for _ in range(3)]
    for process in children:
        process.stdin.close()
    widths = [process.stdout.read().strip() for process in children]
    assert [process.wait() for process in children] == [0, 0, 0]
    assert widths == [str(WIDTHS[native.machine_isas()[0]]).encode()] * 3
    assert len(entries(tmp_path)) == 1


def test_a_killed_compile_leaves_nothing_in_the_way(source, tmp_path):
    begun, slow = tmp_path / "begun", tmp_path / "slow-g++"
    slow.write_text(
        f'#!/bin/sh\ncase "$1" in --version) exec g++ --version;; esac\ng++ "$@"; touch {begun}; exec sleep 60\n'
    )
    slow.chmod(0o755)
    process = child(source, compiler=slow)
    process.stdin.close()
    while not begun.exists():
        assert process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert entries(tmp_path) == []
    assert doubled(native.library(source), 1.0) == 2.0


@pytest.mark.parametrize(
    ("variable", "value", "reason"),
    [
        ("ICRL_NATIVE", "0", "ICRL_NATIVE = 0 turns native code off"),
        ("CXX", "no-such-compiler", "no C++ compiler (CXX = no-such-compiler is not on the PATH)"),
        ("CXX", "false", "false --version failed"),
        ("PATH", "/nonexistent", "no C++ compiler (g++ nor clang++ nor c++ is not on the PATH)"),
    ],
)
def test_why_there_is_no_native_code_is_said_once(variable, value, reason, source, monkeypatch, caplog):
    monkeypatch.setenv(variable, value)
    with caplog.at_level(logging.WARNING):
        assert reason in native.refusal(source)
        assert reason in native.refusal(source)
    assert [record.message.startswith("squares.cpp is not used") for record in caplog.records] == [True]
    with pytest.raises(native.NativeUnavailableError):
        native.library(source)


def test_source_that_does_not_compile_is_a_reason_with_the_compilers_words(source):
    source.write_text("#error spelt wrong\n")
    assert "spelt wrong" in native.refusal(source)


def test_a_cache_of_someone_elses_is_refused(source, tmp_path, monkeypatch):
    place = tmp_path / "cache" / "native"
    place.mkdir(parents=True, mode=0o700)
    place.chmod(0o777)
    assert "can be written to by others" in native.refusal(source)
    place.chmod(0o700)
    forget()
    monkeypatch.setattr(building.os, "getuid", lambda: 12345)
    assert "belongs to another user" in native.refusal(source)


def test_the_cache_is_the_users_own(source, tmp_path):
    native.library(source)
    assert (tmp_path / "cache" / "native").stat().st_mode & 0o777 == 0o700


def test_a_cache_that_cannot_be_made_is_a_reason(source, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ICRL_CACHE_DIR", str(tmp_path / "file"))
    assert "ICRL_CACHE_DIR chooses another place" in native.refusal(source)


def test_without_a_home_there_is_no_cache_and_nothing_is_made_here(source, tmp_path, monkeypatch):
    for name in ("ICRL_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(building.os.path, "expanduser", lambda path: path)  # as where the user has no entry
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.iterdir())
    assert "no home directory" in native.refusal(source)
    assert set(tmp_path.iterdir()) == before


def test_a_forced_instruction_set_must_be_one_of_the_machines(source, monkeypatch):
    monkeypatch.setenv("ICRL_NATIVE_ISA", "avx1024")
    with pytest.raises(ValueError, match="ICRL_NATIVE_ISA = avx1024: expected one that this machine runs"):
        native.library(source)
    monkeypatch.setattr(isas, "_cpu_flags", lambda: {"avx2", "fma", "f16c"})
    machine_isas = isas.machine_isas.__wrapped__
    if "sse2" in machine_isas():
        assert machine_isas() == ("avx2", "sse2")
