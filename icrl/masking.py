"""Secrets stay out of what is shown: a config on a board or in a listing passes through here first.

Masked are the values of keys that are named like a secret (*_KEY, *_TOKEN, *SECRET*, *PASSWORD*), and inside any text:
assignments to such names, credentials of a URL, the usual shapes of access tokens, and the value of every environment
variable that is named like a secret.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

import yaml

MASK = "***"

_SECRET_NAME = re.compile(r"(?i)(?:^|[^a-z0-9])(?:key|token)$|apikey$|secret|passw(?:or)?d|credential")
_ASSIGNMENT = re.compile(
    r"(?i)((?:[\w-]*[_-](?:key|token)|apikey|token|[\w-]*(?:secret|passw(?:or)?d|credential)[\w-]*)\s*[=:]\s*)[^\s&,;]+"
)
_URL_CREDENTIALS = re.compile(r"(://)[^\s/@]+(@)")
_TOKEN_SHAPE = re.compile(
    r"\b(?:hf_|gh[oprsu]_|github_pat_|sk-|xox[abp]-|AKIA|ASIA|glpat-)[A-Za-z0-9_-]{12,}|\bBearer\s+\S+"
)
_SHORTEST = 6
"""Characters of an environment value that is looked for: a shorter one would hide innocent text."""


def named_like_a_secret(name: str) -> bool:
    """Whether a key or a variable of this name holds a secret."""
    return _SECRET_NAME.search(name) is not None


def mask(value: Any, name: str = "") -> Any:
    """The value, nested mappings and lists included, with secrets replaced; `name` is the key it stands under."""
    if isinstance(value, Mapping):
        return {key: mask(inner, str(key)) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [mask(inner, name) for inner in value]
    if value is not None and named_like_a_secret(name):
        return MASK
    return mask_text(value) if isinstance(value, str) else value


def mask_text(text: str) -> str:
    """Text with what looks like a secret replaced."""
    for name, secret in os.environ.items():
        if len(secret) >= _SHORTEST and named_like_a_secret(name):
            text = text.replace(secret, MASK)
    text = _URL_CREDENTIALS.sub(rf"\1{MASK}\2", text)
    text = _ASSIGNMENT.sub(rf"\1{MASK}", text)
    return _TOKEN_SHAPE.sub(MASK, text)


def masked_yaml(text: str) -> str:
    """A YAML document with its secrets masked; keys keep their order, comments are left out."""
    return str(yaml.safe_dump(mask(yaml.safe_load(text)), sort_keys=False, allow_unicode=True))
