"""The run folder: where each file of a run lies, and how a run is made and found."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Iterator
from typing import Any

from absl import logging
from etils import epath

from vision_lang.errors import InputError
from vision_lang.runs import config as config_lib
from vision_lang.runs import files, manifest


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """The paths of one run. TensorBoard's event files lie in the root, so that
    `tensorboard --logdir runs` shows each run under its folder's own name."""

    root: epath.Path

    @property
    def config(self) -> epath.Path:
        return self.root / "config.json"

    @property
    def provenance(self) -> epath.Path:
        return self.root / "provenance.json"

    @property
    def metrics(self) -> epath.Path:
        return self.root / "metrics.jsonl"

    @property
    def tokenizer(self) -> epath.Path:
        return self.root / "tokenizer.json"

    @property
    def data(self) -> epath.Path:
        """Which data were used: name, fingerprint, sizes of the splits, names of the classes."""
        return self.root / "data.json"

    @property
    def checkpoints(self) -> epath.Path:
        return self.root / "checkpoints"

    @property
    def samples(self) -> epath.Path:
        return self.root / "samples"

    @property
    def results(self) -> epath.Path:
        return self.root / "results.json"

    @property
    def examples(self) -> epath.Path:
        """What each example contributed to some of the results."""
        return self.root / "examples.json"

    @property
    def final(self) -> epath.Path:
        return self.root / "final.json"

    @property
    def mark(self) -> epath.Path:
        """By which several processes know at the start that they see the same folder."""
        return self.root / ".processes"

    @property
    def began(self) -> bool:
        """Whether its training has left anything: a checkpoint or a line of metrics."""
        saved = self.checkpoints.exists() and any(self.checkpoints.iterdir())
        return saved or (self.metrics.exists() and self.metrics.stat().length > 0)

    def read_config(self) -> Any:
        """Returns the stored config (a locked ConfigDict)."""
        return config_lib.of_run(self.config.read_text())


@contextlib.contextmanager
def held(run: RunFolder) -> Iterator[None]:
    """Within it, no other process of this machine trains this run; however this one ends, the
    system lets go. Where a file system knows no locks, as a bucket, nothing is held.

    Raises:
      InputError: another process trains it.
    """
    if os.name != "posix" or not files.is_local(run.root):
        yield
        return
    import fcntl

    folder = os.open(run.root, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(folder)
        raise InputError(
            f"Another process is training '{run.root}': let it end, or name another folder."
        ) from error
    except OSError as error:
        logging.warning("'%s' cannot be locked: %s.", run.root, error.strerror)
    try:
        yield
    finally:
        os.close(folder)


def create(workdir: str, task: str) -> RunFolder:
    """Makes a new run folder: `workdir`, or a fresh `runs/<task>-<time>` where it is ''.

    Raises:
      InputError: `workdir` holds a run already, or something that is no run; or no folder can be
        made there.
    """
    try:
        return _create(workdir, task)
    except OSError as error:
        place = workdir or "runs"
        raise InputError(
            f"Cannot make a run folder at '{place}': {error.strerror or error}. Name another "
            "folder."
        ) from error


def _create(workdir: str, task: str) -> RunFolder:
    if workdir:
        root = epath.Path(workdir)
        if (root / "config.json").exists():
            raise InputError(
                f"'{workdir}' already holds a run. Resume it with --workdir={workdir} alone, or "
                "name another folder."
            )
        if root.exists() and (not root.is_dir() or not _is_unused(root)):
            raise InputError(f"'{workdir}' exists and is not an empty folder; name another one.")
        root.mkdir(parents=True, exist_ok=True)
    else:
        root = _fresh(task)
    run = RunFolder(root)
    run.samples.mkdir(parents=True, exist_ok=True)
    return run


def _is_unused(root: epath.Path) -> bool:
    """Whether nothing lies there but what a start leaves that was killed before its config was
    written: the folder of samples, and the beginning of that file."""
    return all(
        path.name.startswith(".config.json.")
        or (path.name == "samples" and not any(path.iterdir()))
        for path in root.iterdir()
    )


def open(path: str, checkpoint: bool = False) -> RunFolder:
    """Returns the run that lies at `path`.

    Args:
      path: a folder that `create` made and training has begun in.
      checkpoint: ask for at least one finished checkpoint.

    Raises:
      InputError: the folder does not exist, is no run, or lacks a checkpoint; the sentence says
        what was found.
    """
    run = RunFolder(epath.Path(path))
    if not run.root.exists():
        raise InputError(f"Run folder '{path}' does not exist.{_runs_nearby(run.root)}")
    if not run.config.exists():
        found = sorted(p.name for p in run.root.iterdir())[:8] if run.root.is_dir() else ["a file"]
        raise InputError(
            f"'{path}' is not a run folder: it has no config.json (found: "
            f"{', '.join(found) or 'nothing'})."
        )
    if checkpoint:
        _require_checkpoint(run)
    return run


def _fresh(task: str) -> epath.Path:
    stem = f"{task}-{time.strftime('%Y%m%d-%H%M%S')}"
    for n in range(1, 1000):
        root = epath.Path("runs") / (stem if n == 1 else f"{stem}-{n}")
        try:
            root.mkdir(parents=True, exist_ok=False)
        except FileExistsError:  # two runs started within one second
            continue
        return root
    raise InputError(f"No free folder name under 'runs/{stem}'.")


def _runs_nearby(root: epath.Path) -> str:
    if not root.parent.is_dir():
        return ""
    runs = sorted(p.name for p in root.parent.iterdir() if (p / "config.json").exists())
    return f" Runs beside it: {', '.join(runs[-5:])}." if runs else ""


def _require_checkpoint(run: RunFolder) -> None:
    found = manifest.survey(run.checkpoints)
    if any(reason == "" for reason in found.values()):
        return
    detail = "; ".join(f"{name}: {reason}" for name, reason in found.items())
    raise InputError(
        f"Run '{run.root}' has no finished checkpoint"
        + (f" (found {detail})" if detail else " (its checkpoints folder is empty or absent)")
        + f". Train it with --workdir={run.root}."
    )
