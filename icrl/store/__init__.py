"""The dataset, on disk or in an object store: Zarr v3 shards that a kill cannot tear, their commit records, a reader.

Knows arrays and files, not where the numbers come from: whoever writes or verifies passes them in.
"""

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
from icrl.store.place import LOCK_FILE, Place, make_directory, require_free, require_writable, sweep_partials, writing
from icrl.store.reader import SplitReader
from icrl.store.recipe import SPLITS, dataset_path, dataset_recipe, recipe_hash, recipe_sha256, require_same_recipe
from icrl.store.schema import ArraySpec, Geometry, arrays_for, geometry_for
from icrl.store.verify import Fault, Verification, verify

__all__ = [
    "LOCK_FILE",
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
    "dataset_recipe",
    "geometry_for",
    "initialise",
    "initialised",
    "make_directory",
    "missing",
    "read_recipe",
    "recipe_hash",
    "recipe_sha256",
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
