"""Between a published file and our variables: tables of modules, and what becomes of each tensor.

A table has a row for each kind of module: its published name, our path, and how its tensors are
arranged there and here. `{}` stands for a number, the same on both sides. One table serves both
directions: for each leaf of our tree it tells the published tensor and the two transposes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import flax.traverse_util
import jax.numpy as jnp
import numpy as np

from vision_lang.errors import InputError
from vision_lang.pretrained import tensors as files

Change = Callable[[np.ndarray], np.ndarray]


class Leaf(NamedTuple):
    """One tensor of a module: its published name, ours, and what is done to it either way."""

    published: str
    ours: str
    to_ours: Change
    to_published: Change
    collection: str = "params"


def same(x: np.ndarray) -> np.ndarray:
    return x


def _transposed(*axes: int) -> tuple[Change, Change]:
    back = tuple(int(i) for i in np.argsort(axes))
    return (lambda x: x.transpose(axes)), (lambda x: x.transpose(back))


BIAS = Leaf("bias", "bias", same, same)
# [out, in] there, [in, out] here.
DENSE = (Leaf("weight", "kernel", *_transposed(1, 0)), BIAS)
# transformers' Conv1D, which GPT-2's matrices are: [in, out] on both sides.
DENSE_IN_OUT = (Leaf("weight", "kernel", same, same), BIAS)
# [out, in, height, width] there, [height, width, in, out] here.
CONV = (Leaf("weight", "kernel", *_transposed(2, 3, 1, 0)), BIAS)
NORM = (Leaf("weight", "scale", same, same), BIAS)
BATCH_NORM = (
    *NORM,
    Leaf("running_mean", "mean", same, same, "batch_stats"),
    Leaf("running_var", "var", same, same, "batch_stats"),
)
TABLE = (Leaf("weight", "embedding", same, same),)
# Keras arranges kernels as linen does.
KERAS = (Leaf("kernel", "kernel", same, same), BIAS)
# A tensor that is its module's only one, and has its name.
PARAMETER = (Leaf("", "", same, same),)


class Row(NamedTuple):
    """A kind of module: its published name, our path, its tensors."""

    published: str
    ours: str
    leaves: tuple[Leaf, ...]


def under(rows: Iterable[Row], published: str, ours: str) -> tuple[Row, ...]:
    """The same rows inside another module."""
    return tuple(Row(f"{published}.{r.published}", f"{ours}/{r.ours}", r.leaves) for r in rows)


class Names(NamedTuple):
    """What a published tensor is here."""

    published: str
    leaf: Leaf


def names(rows: Iterable[Row], paths: Iterable[str]) -> dict[str, Names]:
    """Returns, of each of our paths 'params/h_3/attn/c_attn/kernel', what it is published as.

    Raises:
      ValueError: a path that no row of the table has.
    """
    patterns = [(_pattern(row.ours), row) for row in rows]
    found = {}
    for path in paths:
        collection, _, rest = path.partition("/")
        found[path] = _find(patterns, collection, rest)
    return found


def _pattern(ours: str) -> re.Pattern[str]:
    return re.compile(re.escape(ours).replace(r"\{\}", r"(\d+)"))


def _find(patterns: list[tuple[re.Pattern[str], Row]], collection: str, path: str) -> Names:
    for pattern, row in patterns:
        for leaf in row.leaves:
            module = path if not leaf.ours else path.removesuffix("/" + leaf.ours)
            if leaf.collection != collection or (leaf.ours and module == path):
                continue
            if match := pattern.fullmatch(module):
                published = row.published.format(*match.groups())
                return Names(".".join(x for x in (published, leaf.published) if x), leaf)
    raise ValueError(f"no row of the table is for {collection}/{path}")


def read(
    tensors: files.Tensors, expected: Any, rows: Iterable[Row], ignored: str = ""
) -> dict[str, Any]:
    """Reads our variables out of a published file.

    Args:
      tensors: the file.
      expected: our variables as shapes, {"params": ..., "batch_stats": ...}.
      rows: the table of the layout.
      ignored: pattern of published names that are no weights, such as masks.

    Returns:
      The same tree of float32 arrays.

    Raises:
      InputError: tensors are missing, left over, or of another shape; all are named.
    """
    wanted = flat(expected)
    table = names(rows, wanted)
    by_name = {found.published: (path, found.leaf) for path, found in table.items()}
    if not any(name in tensors for name in by_name):
        raise InputError(
            f"'{tensors.source}' is another network's: it holds none of the {len(by_name)} tensors "
            f"that are asked for, such as {min(by_name)}; it has {min(tensors, default='none')}."
        )
    lines = [f"missing: {n} ({path})" for n, (path, _) in by_name.items() if n not in tensors]
    left = (n for n in tensors if n not in by_name and not re.fullmatch(ignored, n))
    lines += [f"left over: {n}" for n in sorted(left)]
    _refuse(tensors, lines)
    found = {}
    for name, tensor in files.float32(tensors, list(by_name)):
        path, leaf = by_name[name]
        try:
            array = leaf.to_ours(tensor)
        except ValueError:  # it has not even as many axes
            array = tensor
        if array.shape != wanted[path].shape:
            lines.append(f"{name} {tensor.shape} does not fit {path} {wanted[path].shape}")
        elif not lines:
            found[path] = jnp.asarray(array)
    _refuse(tensors, lines)
    return nested(found)


def write(variables: Any, rows: Iterable[Row]) -> dict[str, np.ndarray]:
    """Returns our variables as published tensors, the inverse of `read` bit for bit."""
    ours = flat(variables)
    return {
        name: np.array(leaf.to_published(np.asarray(ours[path])), order="C")
        for path, (name, leaf) in names(rows, ours).items()
    }


def with_prefix(tensors: files.Tensors, prefix: str, but: str = "") -> files.Tensors:
    """The same with `prefix` before all names, which some writers leave out; not before those that
    the pattern `but` matches."""
    if any(name.startswith(prefix) for name in tensors):
        return tensors
    return tensors.renamed(lambda name: name if re.fullmatch(but, name) else prefix + name)


def flat(tree: Any) -> dict[str, Any]:
    """{"params": {"a": {"b": leaf}}} -> {"params/a/b": leaf}."""
    return flax.traverse_util.flatten_dict(tree, sep="/")


def nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flat`."""
    return flax.traverse_util.unflatten_dict(dict(leaves), sep="/")


def _refuse(tensors: files.Tensors, lines: list[str]) -> None:
    if lines:
        raise InputError(
            f"'{tensors.source}' does not fit the network that was asked for:\n  "
            + "\n  ".join(lines)
        )
