"""YAML files and `key=value` overrides to a `Config`: inheritance, interpolation, and where each value was written."""

from __future__ import annotations

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
from icrl.config.schema import Config
from icrl.config.sections import ConfigError, Problem
from icrl.config.sources import COMMAND_LINE, config_root, parse_value, placed, read_yaml

_IMPLIED = {"seed": 0, "train": {"seed": "${seed}"}}
"""`train.seed` follows `seed` unless it is given."""

_RESOLVER = re.compile(r"\$\{\s*([\w.]+)\s*:\s*([^}]*)\}")
_ALLOWED_ENVIRONMENT = re.compile(r"ICRL_\w+")


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
    merged = OmegaConf.merge(tree, _compose(path, config_root(path), sources, ()))
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


def _compose(path: Path, root: Path, sources: dict[str, str], chain: tuple[Path, ...]) -> DictConfig:
    own, marks = read_yaml(path)
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


def _override(tree: DictConfig, override: str, sources: dict[str, str]) -> None:
    key, equals, text = override.removeprefix("--").partition("=")
    if not equals or not key:
        raise ConfigError([Problem(override, "", "key=value", "for example train.steps=1000", COMMAND_LINE)])
    try:
        value = parse_value(text)
        # the list index of context[0].weight stays inside the path
        OmegaConf.update(tree, key, value, merge=True)
    except (yaml.YAMLError, OmegaConfBaseException, TypeError, IndexError, AssertionError) as error:
        first = str(error).splitlines()[0]
        raise ConfigError(
            [Problem(key, text, f"a key and a value that fit the config ({first})", "", COMMAND_LINE)]
        ) from None
    sources[key] = f"{COMMAND_LINE} ({override})"


def _build(tree: DictConfig, sources: dict[str, str]) -> Config:
    problems = list(_foreign_resolvers(OmegaConf.to_container(tree)))
    if problems:
        raise ConfigError([placed(problem, sources) for problem in problems])
    try:
        values = OmegaConf.to_container(tree, resolve=True)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", "") or ""
        raise ConfigError(
            [placed(Problem(key, str(error).splitlines()[0], "an interpolation that resolves"), sources)]
        ) from None
    assert isinstance(values, dict)
    try:
        return build(Config, {str(key): value for key, value in values.items()})
    except ConfigError as error:
        raise ConfigError([placed(problem, sources) for problem in error.problems]) from None


def _foreign_resolvers(values: Any) -> list[Problem]:
    """Interpolations that call a resolver: only `oc.env` of ICRL_* variables is allowed (configs are not code)."""
    problems = []
    for key, value in flatten(values).items():
        if isinstance(value, str):
            for resolver, argument in _RESOLVER.findall(value):
                if resolver != "oc.env" or not _ALLOWED_ENVIRONMENT.fullmatch(argument.split(",")[0].strip()):
                    problems.append(Problem(key, value, "${key} or ${oc.env:ICRL_...}"))
    return problems
