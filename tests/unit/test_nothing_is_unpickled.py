"""A run directory received from elsewhere can bring weights but no code: no stage has a way to load any."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from icrl.config import sources

ROOT = Path(__file__).resolve().parents[2]
STAGES = ("icrl", "data_gen", "train", "eval", "cluster")
MODULES = {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "pandas", "zipimport", "runpy"}
"""What can turn bytes into code."""
CALLS = {
    "torch.load", "torch.jit.load", "torch.hub.load", "np.load", "numpy.load", "yaml.unsafe_load", "yaml.full_load",
    "importlib.util.spec_from_file_location", "eval", "exec", "compile",
}  # fmt: skip
METHODS = {"load_checkpoint", "restore", "get_checkpoint", "from_checkpoint", "load_module_state_dict"}
"""Of DeepSpeed and Ray: they unpickle what they wrote."""


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def ways_to_code(text: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Import(names=names):
                yield from (name.name for name in names if name.name.partition(".")[0] in MODULES)
            case ast.ImportFrom(module=str(module)) if module.partition(".")[0] in MODULES:
                yield module
            case ast.Call(func=function) if dotted(function) in CALLS:
                yield dotted(function)
            case ast.Call(func=ast.Attribute(attr=method)) if method in METHODS:
                yield method
            case ast.keyword(arg="allow_pickle"):
                yield "allow_pickle"


@pytest.mark.parametrize("stage", STAGES)
def test_no_stage_loads_what_could_be_code(stage: str) -> None:
    files = sorted((ROOT / stage).rglob("*.py"))
    assert files
    assert {str(file): found for file in files if (found := list(ways_to_code(file.read_text())))} == {}


def test_yaml_makes_plain_values_only() -> None:
    assert issubclass(sources._ValueLoader, yaml.SafeLoader)
    with pytest.raises(yaml.YAMLError):
        sources.parse_value("!!python/object/apply:os.system [true]")


@pytest.mark.parametrize(
    "line",
    ["import pickle", "from cloudpickle import loads", "torch.load(path)", "engine.load_checkpoint(x)", "eval('1')"],
)
def test_the_scan_finds_what_it_looks_for(line: str) -> None:
    assert list(ways_to_code(line))
