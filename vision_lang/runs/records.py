"""The files that say how a run ended: final.json (digests), results.json (numbers) and, of some of
the numbers, what each example contributed: examples.json."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, SupportsFloat

import numpy as np
from etils import epath

from vision_lang.runs import files, manifest, trees
from vision_lang.runs import folder as folder_lib


def digest(tree: Any) -> str:
    """Returns the sha256 (hex) of a pytree: path, shape, dtype and bytes of each leaf by path.

    The bytes are little-endian in C order, so that machines and array types (jax, numpy, a
    restored checkpoint's nested dicts) agree where the values do, bit for bit.
    """
    total = hashlib.sha256()
    for path, leaf in sorted(trees.named_leaves(tree).items()):
        array = trees.native(leaf)
        shape, dtype = trees.spec(array)
        total.update(json.dumps([path, shape, dtype]).encode())
        total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()


def write_final(
    run: folder_lib.RunFolder, step: int, parts: Mapping[str, Any], **extra: Any
) -> dict[str, Any]:
    """Writes and returns final.json: {"step", "digests": {part: sha256}, ...extra}.

    Args:
      run: the run folder.
      step: finished optimizer steps.
      parts: {name: pytree}: 'params', 'ema/<name>' for each, 'opt_state', 'mutable'.
      **extra: further JSON values, such as the seconds trained.
    """
    final = {"step": step, "digests": {n: digest(t) for n, t in parts.items()}, **extra}
    files.write_json(run.final, final)
    return final


def write_results(
    run: folder_lib.RunFolder,
    results: Mapping[str, SupportsFloat],
    examples: Mapping[str, Mapping[int, float]] | None = None,
    keep_other_splits: bool = False,
) -> dict[str, Any]:
    """Writes and returns results.json, a flat object `<split>/<metric>: number`, and writes
    examples.json, where there are any.

    Args:
      run: the run folder.
      results: the numbers; NaN and infinities become strings.
      examples: of some of them, what each example contributed, by its place in the split.
      keep_other_splits: keep what the file holds on splits that `results` does not name (for an
        evaluation of one split); else the file is written anew.

    Raises:
      ValueError: a name is not `<split>/<metric>`.
    """
    for name in results:
        split, _, metric = name.partition("/")
        if not split or not metric:
            raise ValueError(f"Result '{name}' is not named <split>/<metric>.")
    splits = {name.partition("/")[0] for name in results}

    def merge(path: epath.Path, new: dict[str, Any]) -> dict[str, Any]:
        old = json.loads(path.read_text()) if keep_other_splits and path.exists() else {}
        kept = {name: value for name, value in old.items() if name.partition("/")[0] not in splits}
        return kept | new

    each = merge(run.examples, dict(examples or {}))
    if each or run.examples.exists():  # none of an evaluation before
        files.write_json(run.examples, each)
    merged = merge(run.results, {n: manifest.finite_or_text(v) for n, v in results.items()})
    files.write_json(run.results, merged)
    return merged
