"""The dataset on disk: Zarr v3 shards that a kill cannot tear, their commit records, and a memory-mapped reader.

Knows arrays and files, not where the numbers come from: whoever writes or verifies passes them in.
"""

from icrl.store.card import CARD_FILE
from icrl.store.commit import (
    LOCK_FILE,
    initialise,
    initialised,
    missing,
    read_recipe,
    require_dataset_place,
    withdraw,
    write_shard,
)
from icrl.store.reader import SplitReader
from icrl.store.recipe import (
    SPLITS,
    dataset_path,
    dataset_recipe,
    recipe_config,
    recipe_hash,
    recipe_sha256,
    require_same_recipe,
)
from icrl.store.recovery import Fault, mend_metadata, read_provenance, recover_recipe
from icrl.store.schema import ArraySpec, Geometry, arrays_for, geometry_for
from icrl.store.verify import NOT_COMMITTED, Verification, verify

__all__ = [
    "CARD_FILE",
    "LOCK_FILE",
    "NOT_COMMITTED",
    "SPLITS",
    "ArraySpec",
    "Fault",
    "Geometry",
    "SplitReader",
    "Verification",
    "arrays_for",
    "dataset_path",
    "dataset_recipe",
    "geometry_for",
    "initialise",
    "initialised",
    "mend_metadata",
    "missing",
    "read_provenance",
    "read_recipe",
    "recipe_config",
    "recipe_hash",
    "recipe_sha256",
    "recover_recipe",
    "require_dataset_place",
    "require_same_recipe",
    "verify",
    "withdraw",
    "write_shard",
]
