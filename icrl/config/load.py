"""YAML files and `key=value` overrides to a `Config`: inheritance, interpolation, and where each value was written."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from icrl.config.build import build, to_dict
from icrl.config.schema import Config, ConfigError, Problem

_IMPLIED = {"seed": 0, "train": {"seed": "${seed}"}}
"""`train.seed` follows `seed` unless it is given."""

_RESOLVER = re.compile(r"\$\{\s*([\w.]+)\s*:\s*([^}]*)\}")
_ALLOWED_ENVIRONMENT = re.compile(r"ICRL_\w+")
_COMMAND_LINE = "command line"


@dataclass(frozen=True)
class Loaded:
    """A config and where it came from."""

    config: Config
    given: str
    """The experiment file as given, followed by the overrides as comments."""
    path: Path
    overrides: tuple[str, ...]


def load(path: str | Path, overrides: Sequence[str] = ()) -> Loaded:
    """Read an experiment: its `defaults:` first, then the file, then the overrides; later ones win.

    Raises:
        ConfigError: with every problem found, each with `file:line` or "command line".
    """
    path = Path(path)
    sources: dict[str, str] = {}
    tree = OmegaConf.create(_IMPLIED)
    merged = OmegaConf.merge(tree, _compose(path, _config_root(path), sources, ()))
    assert isinstance(merged, DictConfig)
    for override in overrides:
        _override(merged, override, sources)
    config = _build(merged, sources)
    lines = "".join(f"# override: {override}\n" for override in overrides)
    return Loaded(config, path.read_text() + lines, path, tuple(overrides))


def from_dict(values: Mapping[str, Any], source: str) -> Config:
    """A `Config` from plain values, for example a run directory's `resolved.yaml`; `source` names it in errors."""
    return _build(OmegaConf.create(dict(values)), {"": source})


def override(config: Config, overrides: Sequence[str]) -> Config:
    """The config with `key=value` overrides applied."""
    tree = OmegaConf.create(to_dict(config))
    sources: dict[str, str] = {}
    for entry in overrides:
        _override(tree, entry, sources)
    return _build(tree, sources)


def dump(config: Config) -> str:
    """The resolved config as YAML."""
    return str(yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True))


def identity(config: Config) -> dict[str, Any]:
    """What decides the results of a run, without where and how fast (`Config.identity_excludes`)."""
    values = to_dict(config)
    for key in config.identity_excludes:
        section, _, name = key.partition(".")
        if name:
            values[section].pop(name)
        else:
            values.pop(section)
    return values


def config_hash(config: Config) -> str:
    """8 hex digits of the sha256 of the identity."""
    text = json.dumps(identity(config), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings and lists as `dotted.path[0].key` -> scalar."""
    if isinstance(values, Mapping):
        items = [(f"{prefix}.{key}" if prefix else str(key), value) for key, value in values.items()]
    elif isinstance(values, list):
        items = [(f"{prefix}[{i}]", value) for i, value in enumerate(values)]
    else:
        return {prefix: values}
    result: dict[str, Any] = {}
    for key, value in items:
        result.update(flatten(value, key))
    return result


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """One line for each key that differs: `train.steps: 100 -> 200`."""
    before, after = flatten(old), flatten(new)
    keys = [*before, *(key for key in after if key not in before)]
    absent = "(absent)"
    return [
        f"{key}: {before.get(key, absent)} -> {after.get(key, absent)}"
        for key in keys
        if before.get(key, absent) != after.get(key, absent)
    ]


def _config_root(path: Path) -> Path:
    parents = [parent for parent in path.resolve().parents if parent.name == "configs"]
    return parents[0] if parents else path.resolve().parent


def _compose(path: Path, root: Path, sources: dict[str, str], chain: tuple[Path, ...]) -> DictConfig:
    own, marks = _read(path)
    parents = own.pop("defaults", [])
    if not isinstance(parents, list) or not all(isinstance(entry, str) for entry in parents):
        raise ConfigError([Problem("defaults", parents, "a list of file names under configs/", "", str(path))])
    result = OmegaConf.create()
    for entry in parents:
        parent = (root / f"{entry.removesuffix('.yaml')}.yaml").resolve()
        where = marks.get("defaults", str(path))
        if not parent.is_relative_to(root.resolve()):
            raise ConfigError([Problem("defaults", entry, f"a file under {root}", "", where)])
        if parent in (*chain, path.resolve()):
            raise ConfigError([Problem("defaults", entry, "no file that includes itself", "", where)])
        if not parent.is_file():
            names = ", ".join(sorted(str(p.relative_to(root).with_suffix("")) for p in root.rglob("*.yaml"))[:12])
            raise ConfigError([Problem("defaults", entry, f"a file under {root}", f"there are: {names}", where)])
        shown = Path(os.path.relpath(parent))
        merged = OmegaConf.merge(result, _compose(shown, root, sources, (*chain, path.resolve())))
        assert isinstance(merged, DictConfig)
        result = merged
    sources.update(marks)
    merged = OmegaConf.merge(result, OmegaConf.create(own))
    assert isinstance(merged, DictConfig)
    return merged


def _read(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The values of a YAML file, and `dotted.path` -> `file:line`."""
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


def _override(tree: DictConfig, override: str, sources: dict[str, str]) -> None:
    key, equals, text = override.removeprefix("--").partition("=")
    if not equals or not key:
        raise ConfigError([Problem(override, "", "key=value", "for example train.steps=1000", _COMMAND_LINE)])
    try:
        value = yaml.load(text, Loader=_ValueLoader)
        # the list index of context[0].weight stays inside the path
        OmegaConf.update(tree, key, value, merge=True)
    except (yaml.YAMLError, OmegaConfBaseException, TypeError, IndexError, AssertionError) as error:
        first = str(error).splitlines()[0]
        raise ConfigError(
            [Problem(key, text, f"a key and a value that fit the config ({first})", "", _COMMAND_LINE)]
        ) from None
    sources[key] = f"{_COMMAND_LINE} ({override})"


class _ValueLoader(yaml.SafeLoader):
    """YAML 1.1 scalars, except that 1e-4 is a number."""


_ValueLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d[\d_]*\.?[\d_]*|\.[\d_]+)(?:[eE][-+]?\d+)?$|^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN|NAN)$"),
    list("-+0123456789."),
)


def _build(tree: DictConfig, sources: dict[str, str]) -> Config:
    problems = list(_foreign_resolvers(OmegaConf.to_container(tree)))
    if problems:
        raise ConfigError([_placed(problem, sources) for problem in problems])
    try:
        values = OmegaConf.to_container(tree, resolve=True)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", "") or ""
        raise ConfigError(
            [_placed(Problem(key, str(error).splitlines()[0], "an interpolation that resolves"), sources)]
        ) from None
    assert isinstance(values, dict)
    try:
        return build(Config, {str(key): value for key, value in values.items()})
    except ConfigError as error:
        raise ConfigError([_placed(problem, sources) for problem in error.problems]) from None


def _foreign_resolvers(values: Any) -> list[Problem]:
    """Interpolations that call a resolver: only `oc.env` of ICRL_* variables is allowed (configs are not code)."""
    problems = []
    for key, value in flatten(values).items():
        if isinstance(value, str):
            for resolver, argument in _RESOLVER.findall(value):
                if resolver != "oc.env" or not _ALLOWED_ENVIRONMENT.fullmatch(argument.split(",")[0].strip()):
                    problems.append(Problem(key, value, "${key} or ${oc.env:ICRL_...}"))
    return problems


def _placed(problem: Problem, sources: dict[str, str]) -> Problem:
    """The problem with the place where its value, or the nearest section above it, was written."""
    path = problem.path
    while path and path not in sources:
        cut = max(path.rfind("."), path.rfind("["))
        path = path[:cut] if cut > 0 else ""
    return dataclasses.replace(problem, where=sources.get(path, problem.where))
