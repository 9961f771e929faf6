"""The manifest of a checkpoint: what a finished step directory holds, written last.

A step directory without a manifest is unfinished; one whose files are not as its manifest says is
damaged. Neither is ever restored.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import json
import numbers
import time
from collections.abc import Mapping
from typing import Any, SupportsFloat

from etils import epath

from vision_lang.runs import files, trees

NAME = "manifest.json"
_CHUNK = 1 << 22  # bytes read at a time


def write(
    directory: epath.Path,
    step: int,
    leaves: Mapping[str, trees.Spec],
    metrics: Mapping[str, SupportsFloat],
    config_hash: str = "",
    notes: Mapping[str, Any] | None = None,
) -> None:
    """Hashes all files under `directory` as they lie on disk, then writes its manifest.

    Args:
      directory: a step directory whose other files are complete.
      step: its step.
      leaves: {path: (shape, dtype)} of the saved tree.
      metrics: numbers known at this step; NaN and infinities are stored as strings.
      config_hash: of what a run's config keeps (config.lasting_hash); '': it has none.
      notes: what stands beside the tree, as JSON holds it.
    """
    content = {
        "step": step,
        "config": config_hash,
        "leaves": {p: {"shape": list(s), "dtype": d} for p, (s, d) in leaves.items()},
        "files": _hash_files(directory),
        "metrics": {name: finite_or_text(value) for name, value in metrics.items()},
        "notes": dict(notes or {}),
        "saved": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    files.write_json(directory / NAME, {"content": content, "sha256": _digest(content)})


def read(directory: epath.Path) -> dict[str, Any]:
    """Returns the content of a manifest.

    Raises:
      ValueError: there is none, or it is damaged; the message says which, for `problem`.
    """
    path = directory / NAME
    if not path.exists():
        empty = directory.is_dir() and not any(directory.iterdir())
        raise ValueError("empty" if empty else "unfinished (no manifest.json)")
    try:
        stored = json.loads(path.read_text())
        content, digest = stored["content"], stored["sha256"]
    except (ValueError, KeyError, TypeError) as e:
        raise ValueError("damaged (manifest.json cannot be read)") from e
    if _digest(content) != digest:
        raise ValueError("damaged (manifest.json does not match its own hash)")
    return content


def problem(directory: epath.Path, deep: bool) -> str:
    """Returns what is wrong with a step directory, '' if nothing.

    Args:
      directory: the step directory.
      deep: hash every file; otherwise only names and sizes are compared.
    """
    try:
        return _problem(directory, deep)
    except OSError as e:  # a folder where a file should be, a disk that cannot read it
        return f"damaged ({e.filename or directory}: {e.strerror or e})"


def _problem(directory: epath.Path, deep: bool) -> str:
    try:
        content = read(directory)
    except ValueError as e:
        return str(e)
    if str(content["step"]) != directory.name:
        return f"damaged (it holds step {content['step']})"
    listed = content["files"]
    for name, entry in listed.items():
        path = directory / name
        if not path.exists():
            return f"damaged ({name} is missing)"
        size = path.stat().length
        if size != entry["bytes"]:
            return f"damaged ({name} has {size} of {entry['bytes']} bytes)"
    if deep:
        found = _hash_files(directory, list(listed))
        changed = [name for name in listed if found[name] != listed[name]]
        if changed:
            return f"damaged ({changed[0]} has changed since it was written)"
    return ""


def survey(directory: Any) -> dict[str, str]:
    """Returns {step name: what is wrong with it, '' if nothing} of a checkpoints folder, ascending.

    Files are compared by name and size, not by hash. Names that are no step number are left out.
    """
    directory = files.absolute(directory)
    if not directory.is_dir():
        return {}
    names = [p.name for p in directory.iterdir() if p.name.isdecimal()]
    return {n: problem(directory / n, deep=False) for n in sorted(names, key=int)}


def any_finished(directory: Any) -> bool:
    """Whether a step was saved to its end at some time, be it damaged since."""
    directory = files.absolute(directory)
    steps = [p for p in directory.iterdir() if p.name.isdecimal()] if directory.is_dir() else []
    return any((step / NAME).exists() for step in steps)


def specs(content: Mapping[str, Any]) -> dict[str, trees.Spec]:
    """Returns {path: (shape, dtype)} of the saved tree."""
    return {p: (tuple(e["shape"]), e["dtype"]) for p, e in content["leaves"].items()}


def finite_or_text(value: SupportsFloat) -> float | int | str:
    """Returns a number that strict JSON can hold: 'NaN', 'Infinity', '-Infinity' as text.

    `float()` turns each of them back.
    """
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return int(value)
    number = float(value)
    if number != number:
        return "NaN"
    if number in (float("inf"), float("-inf")):
        return "Infinity" if number > 0 else "-Infinity"
    return number


def _hash_files(directory: epath.Path, names: list[str] | None = None) -> dict[str, dict]:
    if names is None:
        names = sorted(name for name in _files_under(directory) if name != NAME)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:  # hashlib releases the GIL
        return dict(zip(names, pool.map(lambda n: _hash_file(directory / n), names), strict=True))


def _files_under(directory: epath.Path, prefix: str = "") -> list[str]:
    """Returns relative names of all files (epath has no recursive glob, buckets being slow)."""
    names: list[str] = []
    for path in directory.iterdir():
        name = prefix + path.name
        names += _files_under(path, name + "/") if path.is_dir() else [name]
    return names


def _hash_file(path: epath.Path) -> dict[str, Any]:
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as f:
        while chunk := f.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return {"bytes": size, "sha256": digest.hexdigest()}


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
