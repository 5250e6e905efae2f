"""Which keys a row sees: as a mask, as a count, and as the factor that stands outside the loop over keys.

Shapes: N query rows, T keys.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from icrl.attention.problem import Seen

Normalizer = Literal["visible", "none"] | float | Tensor
"""What a row is divided by: the number of keys it sees, nothing, a number, or one number per row [N]."""


def _document(documents: Tensor, n_tokens: int) -> Tensor:
    """The document of every token, [N]."""
    token = torch.arange(n_tokens, device=documents.device, dtype=documents.dtype)
    return torch.bucketize(token, documents[1:], right=True)


def visible_mask(seen: Seen, n_new: int, n_keys: int, device: torch.device) -> Tensor:
    """bool [N,T]: does row i see key j?"""
    position = torch.arange(n_new, device=device)[:, None] + seen.offset
    key = torch.arange(n_keys, device=device)
    mask = torch.ones(n_new, n_keys, dtype=torch.bool, device=device)
    if seen.causal:
        mask = mask & (key <= position)
    if seen.window is not None:
        mask = mask & (key > position - seen.window)
    if seen.documents is not None:
        document = _document(seen.documents, n_new)
        mask = mask & (document[:, None] == document)
    return mask


def visible_count(seen: Seen, n_new: int, n_keys: int, device: torch.device) -> Tensor:
    """Keys that each row sees, int64 [N]: `visible_mask(...).sum(1)` without the mask."""
    position = torch.arange(n_new, device=device) + seen.offset
    first, last = torch.zeros_like(position), torch.full_like(position, n_keys)
    if seen.documents is not None:
        document = _document(seen.documents, n_new)
        first, last = seen.documents[document].long(), seen.documents[document + 1].long()
    if seen.causal:
        last = torch.minimum(last, position + 1)
    if seen.window is not None:
        first = torch.maximum(first, position + 1 - seen.window)
    return (last - first).clamp(min=0)


def row_factor(
    seen: Seen, n_keys: int, scale: float, normalizer: Normalizer, like_BHND: Tensor, *, traced: bool
) -> Tensor:
    """scale / normaliser of every row, [N]: float64 beside float64 tensors, else float32; 0 where a row sees no key.

    Kept from call to call, except where tensors are `traced`, or recorded in a graph whose replay would fill them.
    """
    dtype = torch.promote_types(like_BHND.dtype, torch.float32)
    if isinstance(normalizer, Tensor):
        return scale / normalizer.to(dtype)
    arguments = (seen, like_BHND.shape[2], n_keys, scale, normalizer, dtype, like_BHND.device)
    recorded = traced or (like_BHND.is_cuda and torch.cuda.is_current_stream_capturing())
    return _factor(*arguments) if recorded or seen.documents is not None else _kept_factor(*arguments)


def _factor(
    seen: Seen, n_new: int, n_keys: int, scale: float, normalizer: str | float, dtype: torch.dtype, device: torch.device
) -> Tensor:
    if normalizer == "visible":
        count = visible_count(seen, n_new, n_keys, device)
        return torch.where(count > 0, scale / count.to(dtype), 0.0)
    divisor = 1.0 if isinstance(normalizer, str) else normalizer
    return torch.full((n_new,), scale / divisor, dtype=dtype, device=device)


@lru_cache(maxsize=512)
def _kept_factor(
    seen: Seen, n_new: int, n_keys: int, scale: float, normalizer: str | float, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """`_factor` once per shape: four tiny kernels would cost more than the attention of a short sequence."""
    with torch.inference_mode(mode=False):  # a tensor made in inference mode could not be saved for a backward pass
        return _factor(seen, n_new, n_keys, scale, normalizer, dtype, device)
