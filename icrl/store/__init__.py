"""The dataset, on disk or in an object store: Zarr v3 shards that a kill cannot tear, their commit records, a reader.

Knows arrays and files, not where the numbers come from: whoever writes or verifies passes them in.
"""

from icrl.store.card import CARD_FILE
from icrl.store.commit import (
    initialise,
    initialised,
    missing,
    read_recipe,
    require_dataset_place,
    withdraw,
    write_shard,
)
from icrl.store.objects import ObjectPath
from icrl.store.place import (
    LOCK_FILE,
    Place,
    dataset_place,
    make_directory,
    require_free,
    require_writable,
    sweep_partials,
    writing,
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
    "ObjectPath",
    "Place",
    "SplitReader",
    "Verification",
    "arrays_for",
    "dataset_path",
    "dataset_place",
    "dataset_recipe",
    "geometry_for",
    "initialise",
    "initialised",
    "make_directory",
    "mend_metadata",
    "missing",
    "read_provenance",
    "read_recipe",
    "recipe_config",
    "recipe_hash",
    "recipe_sha256",
    "recover_recipe",
    "require_dataset_place",
    "require_free",
    "require_same_recipe",
    "require_writable",
    "sweep_partials",
    "verify",
    "withdraw",
    "write_shard",
    "writing",
]
