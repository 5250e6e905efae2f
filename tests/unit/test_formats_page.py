"""The table of arrays in `docs/formats.md` is that of the store."""

import re
from pathlib import Path

from icrl.config import (
    BernoulliBanditConfig,
    Config,
    ContextComponent,
    DatasetConfig,
    GridWorldConfig,
    LinearBanditConfig,
    TabularMDPConfig,
    UniformConfig,
)
from icrl.store.schema import arrays_for

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "formats.md").read_text()


def test_the_page_lists_the_arrays_of_every_environment():
    shown = {}
    for name, dtype, dimensions, rest in re.findall(
        r"^\| `<split>\.zarr/(\w+)` \| (\w+) (\[[^]]+\])(.*) \|$", PAGE, re.MULTILINE
    ):
        shown[name] = {(dtype, also) for also in (dimensions, *re.findall(r"; (\[[^]]+\])", rest))}
    stored = {}
    for environment, materialise in (
        (LinearBanditConfig(), ("theta", "action_set")),
        (LinearBanditConfig(action_set="fresh"), ()),
        (BernoulliBanditConfig(), ("means",)),
        (TabularMDPConfig(), ()),
        (GridWorldConfig(), ()),
    ):
        context = (ContextComponent(UniformConfig()),)
        config = Config(environment=environment, context=context, dataset=DatasetConfig(materialise=materialise))
        for spec in arrays_for(config):
            stored.setdefault(spec.name, set()).add((spec.dtype.name, f"[{', '.join(spec.dimensions)}]"))
    assert shown == stored
