"""Checkpoints: a thin wrapper over orbax that loses nothing and restores nothing broken.

    checkpoints/
      500/                 one finished step
        state/             orbax's own files: the tree as nested dicts of arrays
        manifest.json      written last: step, hash of the config, leaves, sha256 of each file,
                           metrics, notes
      1000/ ...

What orbax 0.12 leaves open and stands here: a step counts only when its manifest is there and its
files match (orbax also counts empty and truncated directories); a failed background save is
raised at the next `check`; leaves are compared by name, shape and dtype before anything is read
(orbax casts dtypes silently); old steps go only after a newer one is complete, so the disk needs
room for one step more than are kept.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping
from typing import Any, SupportsFloat

from absl import logging
from etils import epath

from vision_lang import processes
from vision_lang.errors import InputError, suggestion
from vision_lang.runs import arrays, files, manifest, retention, trees


class CheckpointError(InputError):
    """A checkpoint cannot be written or restored; the sentence says what is still good."""


class Checkpoints:
    """The checkpoints of one run. One save is in flight at a time; close it, or use `with`.

    Of several processes all save and restore together; process 0 makes room, writes the manifest
    and chooses what is restored, and a save is over for all when it is for process 0.

    Args:
      directory: the run's checkpoints folder (made when needed).
      keep: how many of the latest steps stay (at least 1).
      keep_period: each step that is a multiple of it stays too; 0: none.
      keep_best: 'name:min' or 'name:max', the metric whose best step stays too; '': none.
      config_hash: of what the run's config keeps (config.lasting_hash), for the manifests; a step
        with another is not restored. '': there is nothing to compare.
    """

    def __init__(
        self,
        directory: Any,
        keep: int = 2,
        keep_period: int = 0,
        keep_best: str = "",
        config_hash: str = "",
    ) -> None:
        self._directory = files.absolute(directory)
        self._config_hash = config_hash
        self._retention = retention.parse(keep, keep_period, keep_best)
        self._writer = arrays.checkpointer()
        self._thread: threading.Thread | None = None
        self._failure: CheckpointError | None = None
        self._damaged: set[int] = set()  # found by hash: steps() looks at sizes only

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        try:
            self.close()
        except CheckpointError as failure:
            if error is None:
                raise
            if failure is not error:  # what ends the run already says more
                logging.error("%s", failure)

    def steps(self) -> list[int]:
        """Returns the good steps, ascending: manifest there, every file there with its size."""
        found = manifest.survey(self._directory)
        good = [int(name) for name, reason in found.items() if not reason]
        return sorted(step for step in good if step not in self._damaged)

    def latest(self) -> int | None:
        """Returns the newest good step, None if there is none."""
        steps = self.steps()
        return steps[-1] if steps else None

    def save(
        self,
        step: int,
        state: Any,
        metrics: Mapping[str, SupportsFloat] | None = None,
        notes: Mapping[str, Any] | None = None,
    ) -> None:
        """Starts to save `state`; its arrays may be donated or changed once this has returned.

        Waits for the save before. What an interrupted save of the same step has left is
        overwritten; a damaged step of that name is moved aside.

        Args:
          step: the number of finished optimizer steps.
          state: a pytree of jax or numpy arrays and Python numbers.
          metrics: numbers known at this step, for `keep_best`.
          notes: what else is to be known when the step is restored, as JSON holds it.

        Raises:
          CheckpointError: this save could not start, one before has failed, or the step is
            there already.
          InputError: there are metrics, but not the one that `keep_best` names.
        """
        self.wait()
        metrics, notes = dict(metrics or {}), dict(notes or {})
        path = self._directory / str(step)
        try:
            if processes.first():
                self._make_room(path, step)
            leaves = trees.named_leaves(state)
            specs = {p: trees.spec(leaf) for p, leaf in leaves.items()}
            arrays.start_save(self._writer, path / "state", leaves)
        except CheckpointError:
            raise
        except Exception as e:
            self._fail(step, path, e)
            raise self._failure from e  # type: ignore[misc]
        self._thread = threading.Thread(
            target=self._finish,
            args=(step, path, specs, metrics, notes),
            name=f"finish-step-{step}",
        )
        self._thread.start()
        self._retention.check_metrics(metrics)  # now that the step itself is safe

    def check(self) -> None:
        """Raises the failure of a background save, if there was one. Costs nothing: call often."""
        if self._failure is not None:
            raise self._failure

    def wait(self) -> None:
        """Waits for the save in flight, then does `check`."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def close(self) -> None:
        """Waits for the save in flight and frees orbax's threads; raises as `check` does."""
        try:
            self.wait()
        finally:
            try:
                self._writer.close()
            except Exception:  # orbax raises once more what a save has failed of
                if self._failure is None:
                    raise

    def restore(self, target: Any, step: int | None = None) -> tuple[int, Any]:
        """Returns (step, state) from the newest good step, or from `step`.

        Broken steps are named in a warning and passed over. Every leaf must be in both trees
        with the same shape and dtype.

        Args:
          target: a pytree of the wanted structure. A leaf that is a committed jax.Array or a
            ShapeDtypeStruct with a sharding comes back with that sharding, an uncommitted
            jax.Array as another, any other array or ShapeDtypeStruct as numpy on the host, a
            Python number as such. The device count and backend that wrote it do not matter.
          step: a certain step; it must be good.

        Raises:
          CheckpointError: there is no good step; it was saved under another config; or leaves
            are missing, extra, reshaped or re-typed (each named).
        """
        self.wait()
        found = self._choose_together(step)
        path = self._directory / str(found)
        content = manifest.read(path)
        self._check_config(path, content)
        wanted = trees.named_leaves(target)
        stored = manifest.specs(content)
        lines = trees.mismatches(stored, {p: trees.spec(leaf) for p, leaf in wanted.items()})
        if lines:
            raise CheckpointError(
                f"Checkpoint '{path}' does not fit the model that the config describes:\n  "
                + "\n  ".join(lines)
            )
        read = arrays.read(path / "state", wanted, stored)
        return found, trees.unflatten(target, {**trees.named_leaves(target), **read})

    def notes(self, step: int) -> dict[str, Any]:
        """Returns the notes of a good step; those of an older version have none."""
        return manifest.read(self._directory / str(step)).get("notes", {})

    def _check_config(self, path: epath.Path, content: Mapping[str, Any]) -> None:
        """A step of an older version, which has no hash, is taken for what it says it is."""
        theirs = content.get("config", "")
        if theirs and self._config_hash and theirs != self._config_hash:
            raise CheckpointError(
                f"Checkpoint '{path}' was saved by a run with another config (hash {theirs[:12]}) "
                f"than '{self._directory.parent}' has (hash {self._config_hash[:12]}, of all "
                "fields that a resumed run must keep): it was copied from another run, or "
                "config.json was changed by hand. Bring the right one back; a new run may begin "
                "with these weights, by --config.init.NETWORK=RUN."
            )

    def _choose_together(self, step: int | None) -> int:
        """What process 0 chooses, for all."""
        return processes.agreed(self._choose(step) if processes.first() else 0)

    def _choose(self, step: int | None) -> int:
        """Returns the step to restore: the newest (or the asked one) whose every file is intact."""
        found = manifest.survey(self._directory)
        if step is not None:
            reason = found.get(str(step), "not there")
            reason = reason or manifest.problem(self._directory / str(step), deep=True)
            if reason:
                raise CheckpointError(
                    f"Checkpoint '{self._directory / str(step)}' is {reason}. {self._good_steps()}"
                )
            return step
        for name in sorted(found, key=int, reverse=True):
            reason = found[name] or manifest.problem(self._directory / name, deep=True)
            if not reason:
                return int(name)
            self._damaged.add(int(name))
            logging.warning("Checkpoint '%s' is %s: passed over.", self._directory / name, reason)
        detail = "; ".join(f"{name}: {reason or 'damaged'}" for name, reason in found.items())
        raise CheckpointError(
            f"There is no good checkpoint in '{self._directory}' ({detail or 'nothing there'}). "
            "Bring a good one back, or begin again with --fork=NEW."
        )

    def _make_room(self, path: epath.Path, step: int) -> None:
        """Clears the way for a save of `step`, losing nothing that was finished."""
        self._directory.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            return
        if not (path / manifest.NAME).exists():
            path.rmtree()
            return
        if not manifest.problem(path, deep=True):
            raise CheckpointError(f"Step {step} is saved already in '{self._directory}'.")
        n = sum(p.name.startswith(f"{step}.damaged") for p in self._directory.iterdir())
        path.rename(self._directory / f"{step}.damaged-{n + 1}")

    def _finish(self, step: int, path: epath.Path, specs: dict, metrics: dict, notes: dict) -> None:
        """In the background: orbax's own end, the manifest, then what need not stay."""
        try:
            self._writer.wait_until_finished()
            if processes.first():
                manifest.write(path, step, specs, metrics, self._config_hash, notes)
            processes.wait(f"saved {step}")
        except BaseException as e:  # noqa: BLE001 - whatever it is, `check` raises it
            self._fail(step, path, e)
            return
        self._damaged.discard(step)
        if processes.first():
            try:
                self._prune(step)
            except (OSError, ValueError) as e:  # the new step is safe, the old ones only linger
                logging.warning("Old checkpoints could not be deleted: %s", e)

    def _prune(self, newest: int) -> None:
        paths = {step: self._directory / str(step) for step in self.steps()}
        metrics = {step: manifest.read(path)["metrics"] for step, path in paths.items()}
        for step in sorted(paths.keys() - self._retention.stay(metrics, newest)):
            # Without its manifest a step is unfinished, so a kill half-way is harmless.
            (paths[step] / manifest.NAME).unlink()
            paths[step].rmtree()

    def _fail(self, step: int, path: epath.Path, error: BaseException) -> None:
        """Keeps the failure for `check` and frees what the half-written step takes of the disk."""
        self._failure = CheckpointError(
            f"Step {step} could not be saved in '{self._directory}': {arrays.cause(error)}. "
            f"{self._good_steps()} Once that is put right, "
            f"--workdir={self._directory.parent} goes on from there."
        )
        self._failure.__cause__ = error
        if not processes.first():
            return
        for left in reversed(range(20)):  # orbax's other threads may still be writing
            try:
                if path.exists() and not (path / manifest.NAME).exists():
                    path.rmtree()
                break
            except OSError as e:
                if not left:
                    logging.warning("'%s' could not be deleted: %s", path, e)
                time.sleep(0.1)

    def _good_steps(self) -> str:
        try:
            last = self.latest()
        except OSError:
            return "The folder cannot be read."
        if last is None:
            return "There is no good checkpoint before it."
        return f"The last good checkpoint is step {last}."


def restore_part(
    directory: Any, names: Iterable[str], step: int | None = None, optional: Iterable[str] = ()
) -> tuple[int, dict[str, Any]]:
    """Reads some sub-trees of a checkpoint, such as weights without their optimizer.

    Args:
      directory: a run's checkpoints folder.
      names: paths of sub-trees or leaves: 'params', 'ema/default'.
      step: a certain step; default the newest good one.
      optional: further names, which the checkpoint may lack.

    Returns:
      (step, {name: nested dict of numpy arrays, or one array where the name is a leaf's}).

    Raises:
      CheckpointError: there is no good step, or it has no such sub-tree (with a suggestion).
    """
    with Checkpoints(directory) as checkpoints:
        found = checkpoints._choose_together(step)
    path = files.absolute(directory) / str(found)
    stored = manifest.specs(manifest.read(path))
    names, optional = list(names), list(optional)
    parts: dict[str, list[str]] = {}
    for name in (*names, *optional):
        parts[name] = [p for p in stored if p == name or p.startswith(name + "/")]
        if not parts[name] and name in names:
            known = sorted({"/".join(p.split("/")[:n]) for p in stored for n in (1, 2)})
            raise CheckpointError(
                f"Checkpoint '{path}' has no '{name}'.{suggestion(name, known[:40])}"
            )
    wanted = {p: None for paths in parts.values() for p in paths}  # no sharding: numpy
    flat = arrays.read(path / "state", wanted, stored)
    cut = {n: {p[len(n) :].lstrip("/"): flat[p] for p in ps} for n, ps in parts.items()}
    return found, {name: trees.nest(part) for name, part in cut.items()}
