"""What a run logs: metrics.jsonl (exact), TensorBoard events, and samples as PNG."""

from __future__ import annotations

import contextlib
import io
import json
import time
from collections.abc import Iterator, Mapping
from typing import Any, SupportsFloat

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from vision_lang.errors import InputError
from vision_lang.runs import config as config_lib
from vision_lang.runs import events, files, manifest, markdown
from vision_lang.runs import folder as folder_lib

_REMOTE_FLUSH = 30.0  # seconds between two uploads where a file cannot be appended to


class Writer:
    """Logs one run. Only one process writes; close it, or use `with`.

    metrics.jsonl has one line per step, steps ascending: {"step": 50, "loss": 0.5, ...}. Values
    logged by several calls at one step share its line. A float is written so that reading gives
    the same float64; NaN and infinities are the strings "NaN", "Infinity", "-Infinity" (`float`
    reads them). Each call reaches the file at once on a disk, every 30 s in a bucket.

    Args:
      run: the run folder.
      start_step: the step whose checkpoint was restored, 0 for a new run. Lines of later steps
        are cut off (atomically) and later events declared void. What the run logged at
        `start_step` itself stays, and is ignored if it is logged again.
    """

    def __init__(self, run: folder_lib.RunFolder, start_step: int = 0) -> None:
        self._run, self._start = run, start_step
        lines = kept_lines(run.metrics, start_step)
        with self._sentence():
            if run.metrics.exists():
                files.write_text(run.metrics, "".join(lines))
            self._lines = _Lines(run.metrics, lines)
            self._events = events.EventFile(run.root, start_step)
        self._current: dict[str, Any] = json.loads(lines[-1]) if lines else {"step": -1}

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def scalars(self, step: int, values: Mapping[str, SupportsFloat]) -> None:
        """Logs numbers at a step.

        Raises:
          ValueError: the step lies behind the last one, or a name was logged at this step.
          InputError: the disk is full or not writable.
        """
        if step < self._current["step"]:
            raise ValueError(f"Step {step} is logged after step {self._current['step']}.")
        is_new = step > self._current["step"]
        record: dict[str, Any] = {"step": step} if is_new else dict(self._current)
        again = [name for name in values if name in record]
        if again and step > self._start:
            raise ValueError(f"{', '.join(again)}: logged twice at step {step}.")
        fresh = {name: value for name, value in values.items() if name not in record}
        record.update({n: manifest.finite_or_text(v) for n, v in fresh.items()})
        with self._sentence():
            self._lines.put(json.dumps(record) + "\n", is_new)
            self._events.scalars(step, {n: float(v) for n, v in fresh.items()})
            self._events.flush()
        self._current = record

    def image(self, step: int, name: str, image: np.ndarray) -> epath.Path:
        """Logs a picture (uint8 [H, W, 3]) and returns its PNG, `samples/<name>-<step>.png`.

        Raises:
          ValueError: another shape or dtype.
          InputError: the disk is full or not writable.
        """
        from PIL import Image

        image = np.asarray(image)
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"A uint8 [H, W, 3] is wanted, not {image.dtype}{image.shape}.")
        png = io.BytesIO()
        Image.fromarray(image).save(png, "PNG")
        path = self._run.samples / f"{name.replace('/', '-')}-{step:08d}.png"
        with self._sentence():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png.getvalue())
            self._events.image(step, name, png.getvalue(), image.shape[0], image.shape[1])
            self._events.flush()
        return path

    def text(self, step: int, name: str, markdown: str) -> None:
        """Logs a text for TensorBoard, which shows it as Markdown."""
        with self._sentence():
            self._events.text(step, name, markdown)
            self._events.flush()

    def config(self, config: ConfigDict, defaults: ConfigDict | None = None) -> None:
        """Logs a run's config as text and as hparams, and how it differs from `defaults`, where no
        start before has done it to the end."""
        if self._events.has_hparams:
            return
        flat = config_lib.flatten(config)
        values = [(path, repr(value)) for path, value in flat.items()]
        self.text(0, "config", markdown.table(("field", "value"), values))
        if defaults is not None:
            changed = config_lib.differences(defaults, config)
            rows = [(p, str(old), str(new)) for p, (old, new) in changed.items()]
            table = markdown.table(("field", "default", "this run"), rows)
            self.text(0, "config/difference", table if rows else "no difference")
        with self._sentence():
            self._events.hparams_start(flat)
            self._events.flush()

    def finished(self) -> None:
        """Marks the run as complete for the hparams plugin (which shows the first such mark)."""
        with self._sentence():
            self._events.hparams_end()
            self._events.flush()

    def flush(self) -> None:
        """Sends all that was logged; call it before a checkpoint is saved."""
        with self._sentence():
            self._lines.flush()
            self._events.flush()

    def close(self) -> None:
        with self._sentence():
            self._lines.close()
            self._events.close()

    @contextlib.contextmanager
    def _sentence(self) -> Iterator[None]:
        try:
            yield
        except OSError as e:
            raise InputError(
                f"Cannot log in '{self._run.root}': {e.strerror or e}. Once that is put right, "
                f"--workdir={self._run.root} goes on from the last checkpoint."
            ) from e


def read_metrics(path: Any) -> list[dict[str, float]]:
    """Returns the records of a metrics.jsonl, steps ascending; a torn last line is left out."""
    lines = kept_lines(epath.Path(path), None)
    records = [json.loads(line) for line in lines]
    return [{n: v if n == "step" else float(v) for n, v in r.items()} for r in records]


class _Lines:
    """A text file that grows by lines and whose last line may be replaced."""

    def __init__(self, path: epath.Path, lines: list[str]) -> None:
        self._path, self._all = path, list(lines)
        self._local = files.is_local(path)
        self._sent = time.monotonic()
        self._start_of_last = sum(len(line.encode()) for line in lines[:-1])
        if self._local:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            # A mode that epath lacks, and no bucket has.
            self._file = open(path, "r+b")  # noqa: SIM115 - closed by close()

    def put(self, line: str, is_new: bool) -> None:
        """Appends a line, or replaces the last by a longer one."""
        if not self._local:
            self._all = [*self._all, line] if is_new else [*self._all[:-1], line]
            if time.monotonic() - self._sent > _REMOTE_FLUSH:
                self.flush()
            return
        if is_new:
            self._start_of_last = self._file.seek(0, io.SEEK_END)
        else:
            self._file.seek(self._start_of_last)
        self._file.write(line.encode())
        self._file.flush()

    def flush(self) -> None:
        if not self._local:
            self._path.write_text("".join(self._all))
            self._sent = time.monotonic()

    def close(self) -> None:
        self.flush()
        if self._local:
            self._file.close()


def kept_lines(path: epath.Path, last_step: int | None) -> list[str]:
    """Returns the whole lines up to `last_step` (None: all), without what a kill has torn."""
    if not path.exists():
        return []
    kept = []
    for line in path.read_text().splitlines(keepends=True):
        try:
            step = json.loads(line)["step"]
        except (ValueError, KeyError, TypeError):
            continue
        if line.endswith("\n") and (last_step is None or step <= last_step):
            kept.append(line)
    return kept
