"""YAML files and values as given, and where each of them was written."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from icrl.config.sections import ConfigError, Problem

COMMAND_LINE = "command line"
"""The place of what was not written in a file."""


def config_root(path: Path) -> Path:
    """The folder that names in a YAML file are relative to: the nearest `configs/` above it, or its own."""
    parents = [parent for parent in path.resolve().parents if parent.name == "configs"]
    return parents[0] if parents else path.resolve().parent


def read_yaml(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The values of a YAML file, and `dotted.path` -> `file:line`.

    Raises:
        ConfigError: it is missing, not YAML, or not a mapping.
    """
    if not path.is_file():
        raise ConfigError([Problem("CONFIG", str(path), "an existing YAML file", "see configs/")])
    text = path.read_text()
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        values = OmegaConf.to_container(OmegaConf.create(text)) if node is not None else {}
    except (yaml.YAMLError, OmegaConfBaseException, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError([Problem("", problem, "valid YAML", "", where)]) from None
    if not isinstance(values, dict):
        raise ConfigError([Problem("", values, "a mapping at the top of the file", "", f"{path}:1")])
    marks: dict[str, str] = {}
    if node is not None:
        _mark(node, "", path, marks)
    return {str(key): value for key, value in values.items()}, marks


def _mark(node: yaml.Node, prefix: str, path: Path, marks: dict[str, str]) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            name = f"{prefix}.{key.value}" if prefix else str(key.value)
            marks[name] = f"{path}:{key.start_mark.line + 1}"
            _mark(value, name, path, marks)
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            marks[f"{prefix}[{i}]"] = f"{path}:{value.start_mark.line + 1}"
            _mark(value, f"{prefix}[{i}]", path, marks)


class _ValueLoader(yaml.SafeLoader):
    """YAML 1.1 scalars, except that 1e-4 is a number."""


_ValueLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d[\d_]*\.?[\d_]*|\.[\d_]+)(?:[eE][-+]?\d+)?$|^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN|NAN)$"),
    list("-+0123456789."),
)


def parse_value(text: str) -> Any:
    """The value of a `key=value` override."""
    return yaml.load(text, Loader=_ValueLoader)


def placed(problem: Problem, sources: dict[str, str]) -> Problem:
    """The problem with the place where its value, or the nearest section above it, was written."""
    path = problem.path
    while path and path not in sources:
        cut = max(path.rfind("."), path.rfind("["))
        path = path[:cut] if cut > 0 else ""
    return dataclasses.replace(problem, where=sources.get(path, problem.where))
