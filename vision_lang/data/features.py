"""Files of features, alone or as shards, as the command `extract` writes them.

An .npz archive with an array `features` [N, D] and, where its writer knows them, the strings of
RECIPE: the name of the network that made the features, a hash of its weights, how pictures were
resized for it. Only features made by one recipe can be compared.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from etils import epath

from vision_lang.errors import InputError

RECIPE = ("network", "network_hash", "resize")
UNKNOWN = "unknown"


class Shard(NamedTuple):
    """One archive: features [N, D] in the type that they are stored in, their recipe, and their
    names [N], () where nobody asked for them."""

    path: str
    features: np.ndarray
    recipe: dict[str, str]
    names: np.ndarray | tuple[()]


def shards(pattern: str, *, named: bool = False) -> Iterator[Shard]:
    """The archive of this path, or all that match a glob ("features-*.npz") by name, one by one.

    named: each row must have a name.

    Raises:
      InputError: no such file, a file that is no archive of features, or shards that differ in
        dimension or recipe.
    """
    first = None
    for path in _paths(pattern):
        shard = _read(path, named)
        first = first or shard
        if shard.features.shape[1] != first.features.shape[1]:
            raise InputError(
                f"'{shard.path}' has {shard.features.shape[1]} dimensions, '{first.path}' "
                f"{first.features.shape[1]}: shards of one set are wanted."
            )
        same_recipe(first.path, first.recipe, shard.path, shard.recipe)
        yield shard


def same_recipe(a: str, recipe_a: dict[str, str], b: str, recipe_b: dict[str, str]) -> None:
    """Raises InputError, which names both files, unless the recipes agree."""
    for field in RECIPE:
        if recipe_a[field] != recipe_b[field]:
            raise InputError(
                f"The features of '{a}' and '{b}' cannot be compared: their {field} is "
                f"'{recipe_a[field]}' and '{recipe_b[field]}'."
            )


def _paths(pattern: str) -> list[epath.Path]:
    path = epath.Path(pattern)
    if path.is_file():  # also a name that looks like a glob
        return [path]
    found = sorted(path.parent.glob(path.name)) if any(c in path.name for c in "*?[") else []
    if not found:
        raise InputError(f"There is no file '{pattern}'.")
    return found


def _read(path: epath.Path, named: bool) -> Shard:
    try:
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise InputError(f"'{path}' is no .npz archive, but holds a single array.")
            if "features" not in archive:
                raise InputError(f"'{path}' has no array 'features', only: {', '.join(archive)}.")
            features = archive["features"]
            names = archive["names"] if named and "names" in archive else ()
            recipe = {f: str(archive[f]) if f in archive else UNKNOWN for f in RECIPE}
    except InputError:
        raise
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"'{path}' is no .npz archive that can be read: {error}.") from error
    if features.ndim != 2 or 0 in features.shape or features.dtype.kind not in "fiu":
        raise InputError(
            f"The features of '{path}' are {features.dtype} {list(features.shape)}; numbers "
            "[examples, dimensions] are wanted: pool spatial features first."
        )
    if not np.isfinite(features).all():
        raise InputError(f"The features of '{path}' hold NaN or infinity.")
    if named and len(names) != len(features):
        raise InputError(
            f"'{path}' has {len(names)} 'names' for {len(features)} features: one each is wanted, "
            "as the command extract writes them."
        )
    return Shard(str(path), features, recipe, names)
