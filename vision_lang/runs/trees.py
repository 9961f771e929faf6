"""Pytrees by name: every leaf has a path such as 'params/encoder/kernel'."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

Spec = tuple[tuple[int, ...], str]  # shape and dtype name of a leaf


def named_leaves(tree: Any) -> dict[str, Any]:
    """Returns {path: leaf}. Dict keys, attribute names and positions are joined by '/'.

    Raises:
      ValueError: two leaves would have one name, such as those of {1: x, '1': y}.
    """
    flat: dict[str, Any] = {}
    seen: set[str] = set()
    for keys, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        path = "/".join(_name(key) for key in keys)
        stored = path.replace("/", ".")  # how orbax names the array on disk
        if stored in seen:
            raise ValueError(f"Two leaves of the tree are both named '{path}'.")
        seen.add(stored)
        flat[path] = leaf
    return flat


def nest(flat: Mapping[str, Any]) -> Any:
    """Returns the nested dict whose leaves `flat` names; a single leaf named '' stands alone."""
    if set(flat) == {""}:
        return flat[""]
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


def unflatten(like: Any, flat: Mapping[str, Any]) -> Any:
    """Returns a tree of the structure of `like` with the leaves that `flat` names."""
    return jax.tree.unflatten(jax.tree.structure(like), [flat[p] for p in named_leaves(like)])


def native(leaf: Any) -> np.ndarray:
    """Returns a numpy array in this machine's byte order (little-endian, all that JAX runs on)."""
    array = np.asarray(leaf)
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("="))
    return array


def spec(leaf: Any) -> Spec:
    """Returns (shape, dtype name) of an array, a ShapeDtypeStruct or a Python number."""
    if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
        leaf = np.asarray(leaf)
    if isinstance(leaf, np.ndarray) and leaf.dtype.byteorder == ">":
        return tuple(leaf.shape), str(leaf.dtype.newbyteorder("="))
    return tuple(leaf.shape), str(leaf.dtype)


def mismatches(
    stored: Mapping[str, Spec],
    wanted: Mapping[str, Spec],
) -> list[str]:
    """Returns one line for each missing, extra, reshaped or re-typed leaf ({path: spec})."""
    lines = []
    for path in sorted(stored.keys() | wanted.keys()):
        if path not in stored:
            lines.append(f"{path}: missing in the checkpoint (wanted {_show(wanted[path])})")
        elif path not in wanted:
            lines.append(f"{path}: only in the checkpoint ({_show(stored[path])})")
        elif stored[path] != wanted[path]:
            lines.append(f"{path}: {_show(stored[path])}, wanted {_show(wanted[path])}")
    return lines


def _show(leaf_spec: Spec) -> str:
    shape, dtype = leaf_spec
    return f"{dtype}[{','.join(map(str, shape))}]"


def _name(key: Any) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)
