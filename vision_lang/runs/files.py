"""Files of a run: written whole or not at all, on a disk or in a bucket."""

from __future__ import annotations

import json
import os
from typing import Any

from etils import epath

from vision_lang.errors import InputError


def write_text(path: epath.Path, text: str) -> None:
    """Writes a whole file so that a reader never sees half of it.

    On a disk: a temporary file beside it, synced, then renamed. An object store has no atomic
    rename but puts an object whole or not at all, so there it is written directly.

    Raises:
      InputError: the file cannot be written (full disk, no permission); says which and why.
    """
    path = epath.Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not is_local(path):
            path.write_text(text)
            return
        temporary = path.parent / f".{path.name}.tmp-{os.getpid()}"
        try:
            with temporary.open("w") as f:
                f.write(text)
                f.flush()
                os.fsync(f.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as e:
        raise InputError(f"Cannot write '{path}': {e.strerror or e}.") from e


def write_json(path: epath.Path, tree: Any) -> None:
    """Writes `tree` as indented JSON with sorted keys, by `write_text`."""
    write_text(path, json.dumps(tree, indent=2, sort_keys=True) + "\n")


def absolute(path: Any) -> epath.Path:
    """Returns the path as orbax wants it: absolute where it is on a file system."""
    path = epath.Path(path)
    return epath.Path(os.path.abspath(path)) if is_local(path) else path


def is_local(path: epath.Path) -> bool:
    """True where the path is on a file system (renames are atomic there)."""
    return "://" not in str(path) and not str(path).startswith(("gs:/", "s3:/", "az:/"))
