"""Prepared copies of a user's own files: one per state of the source, never shared.

A copy lies at DIR/<builder>/<stem>-<place>-<state>/<version>: `place` is a hash of the source's
path, so that two sources never share a copy, and `state` its fingerprint, so that a source that
changed is prepared anew. Old copies are kept; they may be deleted by hand.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow_datasets as tfds
from absl import logging
from etils import epath

from vision_lang.errors import InputError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Damaged(InputError):
    """Prepared data, in `place`, that are not what was written."""

    def __init__(self, place: epath.PathLike, error: Exception):
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        super().__init__(
            f"The prepared data in '{place}' are damaged ({reason}). Delete that folder, so that "
            "they are prepared anew, or replace it by an intact copy."
        )


@contextlib.contextmanager
def described(place: epath.PathLike) -> Iterator[None]:
    """For what reads TFDS's own files in `place`.

    Raises:
      Damaged: one of them is missing, or holds something else.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # noqa: BLE001  (of JSON, protobuf, UTF-8, TFDS's own, a KeyError...)
        raise Damaged(place, error) from error


def opened(place: epath.PathLike) -> Any:
    """The builder of the data set prepared in `place`, which can read but not make it.

    Raises:
      Damaged: what describes it is.
    """
    with described(place):
        builder = tfds.builder_from_directory(place)
        _ = builder.info.metadata
        return builder


def once(directory: str, target: epath.PathLike, make: Callable[[], None]) -> None:
    """Calls `make` where there is no data set at `target`; one process at a time.

    What is there already needs no lock, so that it may lie on a disk that can only be read: TFDS
    renames a folder to `target` when everything is in it.

    Args:
      directory: where prepared data sets live.
      target: the folder of one of them.
      make: prepares it.

    Raises:
      InputError: `directory` cannot be written to, or its disk is full.
    """
    info = epath.Path(target) / "dataset_info.json"
    if info.exists():
        return
    try:
        with _locked(epath.Path(directory)):
            if not info.exists():
                make()
    except (OSError, RuntimeError) as error:
        reason = _refusal(error)
        if not reason:
            raise
        raise InputError(
            f"Cannot prepare data in '{directory}': {reason}. Make room or get permission there, "
            "or name another folder with --config.data.dir."
        ) from error


def _refusal(error: Exception) -> str:
    """How a file was refused; '' where that is not what went wrong.

    array_record's writer reports a full disk as a RuntimeError with the system's words in it.
    """
    if isinstance(error, OSError):
        place = f" ({error.filename})" if error.filename else ""
        return f"{error.strerror}{place}" if error.strerror else " ".join(str(error).split())
    return next((text for text in map(os.strerror, FULL) if text in str(error)), "")


@contextlib.contextmanager
def _locked(folder: epath.Path) -> Iterator[None]:
    """Only one process at a time prepares under `folder` (on a local disk).

    Three runs started together on a fresh machine would otherwise build the same data thrice and
    get in each other's way at the final rename. Buckets have no locks: there, the last one wins.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if "://" in str(folder):
        yield
        return
    import fcntl

    with open(folder / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield  # closing the file gives the lock back, also when the process dies


def prepare(
    cls: type[tfds.core.GeneratorBasedBuilder],
    make_config: Callable[[str], tfds.core.BuilderConfig],
    *,
    source: str,
    fingerprint: str,
    directory: str,
) -> Any:
    """Opens the copy of a source in this state, after making it where there is none.

    Args:
      cls: the TFDS builder.
      make_config: config name -> builder config; called only when there is something to prepare.
      source: path of the source, made absolute.
      fingerprint: hex digits, of the source's state.
      directory: where prepared data sets live.

    Raises:
      InputError: see `once` and `opened`.
    """
    stem = re.sub(r"[^A-Za-z0-9_]+", "_", epath.Path(source).stem)[:40]
    place = f"{stem}-{hashlib.sha256(source.encode()).hexdigest()[:8]}-"
    name = place + fingerprint
    target = epath.Path(directory) / cls.name / name / str(cls.VERSION)

    def make() -> None:
        parent = target.parent.parent
        if parent.exists() and any(old.name.startswith(place) for old in parent.iterdir()):
            logging.warning("%s has changed since it was prepared: preparing it anew.", source)
        config = make_config(name)
        verbosity = logging.get_verbosity()
        logging.set_verbosity(logging.ERROR)  # TFDS warns of a config that it has not seen
        builder = cls(config=config, data_dir=directory, file_format="array_record")
        logging.set_verbosity(verbosity)
        builder.download_and_prepare()

    once(directory, target, make)
    return opened(target)
