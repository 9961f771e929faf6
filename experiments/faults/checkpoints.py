"""Damages the checkpoints of a real run in every way, restores them, and records what comes of it.

    python -m experiments.faults.checkpoints --out=experiments/faults/checkpoints.json

Trains a tiny run with the real command, and damages its newest step: each file of it, the manifest,
the whole folder. Each time the run's checkpoints are restored in full. A fault is `passed over` (a
warning names the step, and the one before is restored to the bit) or `harmless` (the step itself is
restored to the bit); whatever else comes of it ends this program. Then the disk is full, or the
folder may no longer be written to, in the middle of a run: the command has to stop within a period
of saving and to name the last good step, and to go on to the same end once that is put right.
Prints the tables of README.md. As root, who may mount a small disk.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from experiments.faults import running
from vision_lang.runs import manifest, trees
from vision_lang.runs.checkpoint import Checkpoints
from vision_lang.runs.records import digest

PASSED_OVER, HARMLESS = "passed over", "harmless"
TASK = "recognition"
BEFORE, NEWEST = 18, 20  # the steps that are kept


class Fault(NamedTuple):
    """What is done to a step. `what`: to one of its files, its manifest, or its folder."""

    what: str
    name: str
    do: Callable[[Path], object]


def truncated(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def emptied(file: Path) -> None:
    os.truncate(file, 0)


def longer(file: Path) -> None:
    with file.open("ab") as out:
        out.write(b"\0")


def flipped(share: float) -> Callable[[Path], None]:
    """One bit, so far from the beginning."""

    def do(file: Path) -> None:
        data = bytearray(file.read_bytes())
        data[int(share * len(data))] ^= 1 << int(share * 64) % 8
        file.write_bytes(data)

    return do


def overwritten(seed: int) -> Callable[[Path], None]:
    """A range of bytes by random others, the size being the same."""

    def do(file: Path) -> None:
        rng = np.random.default_rng(seed)
        data = np.frombuffer(file.read_bytes(), np.uint8).copy()
        first, last = np.sort(rng.integers(0, len(data), 2))
        data[first : last + 1] ^= rng.integers(1, 256, last + 1 - first, np.uint8)
        file.write_bytes(data.tobytes())

    return do


def zeroed(file: Path) -> None:
    """As a file whose blocks never reached the disk."""
    file.write_bytes(bytes(file.stat().st_size))


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def a_link_to_nothing(path: Path) -> None:
    path.unlink()
    path.symlink_to("nothing")


def of_the_other_step(path: Path) -> None:
    """The other step's file in its place."""
    step = next(p for p in path.parents if p.name == str(NEWEST))
    shutil.copy(step.parent / str(BEFORE) / path.relative_to(step), path)


TO_A_FILE: dict[str, Callable[[Path], object]] = {
    "truncated to half": truncated,
    "emptied": emptied,
    "one byte longer": longer,
    "a bit flipped at the beginning": flipped(0.0),
    "a bit flipped in the middle": flipped(0.5),
    "a bit flipped at the end": flipped(0.999999),
    "a random range overwritten": overwritten(0),
    "another random range overwritten": overwritten(1),
    "zeroed": zeroed,
    "deleted": Path.unlink,
    "a folder in its place": a_folder,
    "a link to nothing in its place": a_link_to_nothing,
    "that of the other step in its place": of_the_other_step,
}


def no_content(step: Path) -> None:
    shutil.rmtree(step)
    step.mkdir()


def the_other_step(step: Path) -> None:
    shutil.rmtree(step)
    shutil.copytree(step.parent / str(BEFORE), step)


def a_link_to_the_other(step: Path) -> None:
    shutil.rmtree(step)
    step.symlink_to(str(BEFORE))


def a_file(step: Path) -> None:
    shutil.rmtree(step)
    step.write_text("no folder")


def mixed(step: Path) -> None:
    """The other step's arrays under this step's manifest."""
    shutil.rmtree(step / "state")
    shutil.copytree(step.parent / str(BEFORE) / "state", step / "state")


def exchanged(step: Path) -> None:
    """The two largest files of the state have each other's name."""
    files = [p for p in (step / "state").rglob("*") if p.is_file()]
    one, other = sorted(files, key=lambda p: p.stat().st_size)[-2:]
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)


TO_A_STEP: dict[str, Callable[[Path], object]] = {
    "an empty folder": no_content,
    "the folder of the other step": the_other_step,
    "a link to the other step": a_link_to_the_other,
    "a file in its place": a_file,
    "the arrays of the other step": mixed,
    "two files have exchanged their names": exchanged,
    "no arrays": lambda step: shutil.rmtree(step / "state"),
    "arrays that orbax has not finished": lambda step: (step / "state").rename(
        step / "state.orbax-checkpoint-tmp"
    ),
    "one more file": lambda step: (step / "state" / "more").write_text("more"),
}


def faults(step: Path) -> Iterator[Fault]:
    """All that can be done to a step."""
    for path in sorted(p for p in step.rglob("*") if p.is_file()):
        what = "manifest" if path.name == manifest.NAME else "file"
        relative = path.relative_to(step)
        for name, do in TO_A_FILE.items():
            if do is of_the_other_step and not (step.parent / str(BEFORE) / relative).exists():
                continue  # the name is one that orbax made up
            yield Fault(what, name, functools.partial(_to_file, do, relative))
    for name, do in TO_A_STEP.items():
        yield Fault("step", name, do)


def _to_file(do: Callable[[Path], object], relative: Path, step: Path) -> None:
    do(step / relative)


def target(step: Path) -> Any:
    """The structure of what was saved, as numpy arrays."""
    specs = manifest.specs(manifest.read(step))
    return trees.nest({p: jax.ShapeDtypeStruct(s, jnp.dtype(d)) for p, (s, d) in specs.items()})


def tried(fault: Fault, checkpoints: Path, good: dict[int, Any], structure: Any) -> str:
    """What comes of a fault, in a copy of the run's checkpoints; then the run saves again.

    Args:
      fault: done to the newest step.
      checkpoints: a copy, which is damaged.
      good: the states of both steps.
      structure: of a state.
    """
    fault.do(checkpoints / str(NEWEST))
    with running.messages() as lines, Checkpoints(checkpoints) as saved:
        step, state = saved.restore(structure)
        if digest(state) != digest(good[step]):
            raise SystemExit(f"{fault.what}, {fault.name}: wrong data as step {step}")
        if step == NEWEST:
            return HARMLESS
        if not any(f"{NEWEST}' is" in line and "passed over" in line for line in lines):
            raise SystemExit(f"{fault.what}, {fault.name}: step {step} without a word")
        saved.save(NEWEST, good[NEWEST])
        step, state = saved.restore(structure)
        if step != NEWEST or digest(state) != digest(good[NEWEST]):
            raise SystemExit(f"{fault.what}, {fault.name}: it cannot be saved again")
    return PASSED_OVER


# Saves that fail. ---------------------------------------------------------------------------------

OFTEN = (
    "--config.steps=300", "--config.eval_every=0", "--config.log_every=1", "--config.save_every=4",
)  # fmt: skip
PERIOD = 4
# Root, as whom this runs, may else write where nobody may.
AS_OTHERS = ("setpriv", "--bounding-set=-dac_override")


@contextlib.contextmanager
def full_disk(checkpoints: Path) -> Iterator[None]:
    """Inside, not a byte is left on the disk of the checkpoints, which is one of their own."""
    ballast = checkpoints / "ballast"
    with ballast.open("wb", buffering=0) as out, contextlib.suppress(OSError):
        while out.write(bytes(4096)):
            pass
    yield
    ballast.unlink()


@contextlib.contextmanager
def no_permission(checkpoints: Path) -> Iterator[None]:
    """Inside, nobody may write to the folder of the checkpoints."""
    checkpoints.chmod(0o555)
    yield
    checkpoints.chmod(0o755)


FAILURES = {"the disk is full": full_disk, "the folder may not be written to": no_permission}


def stopped(name: str, wanted: dict[str, Any], directory: Path, arguments: Sequence[str]) -> dict:
    """Trains a run whose saves fail from some time on; returns the record.

    Args:
      name: of the failure.
      wanted: how a run ends that nothing disturbs.
      directory: to be made; the run and its data lie in it.
      arguments: of the command.
    """
    directory.mkdir()
    run, disk = directory / "run", directory / "disk"
    first = running.Started(directory, "--workdir=run", *arguments)
    first.until(lambda: bool(running.good_steps(run)))
    first.process.terminate()
    if first.end() != 128 + signal.SIGTERM:
        raise SystemExit(first.said)
    # The checkpoints move to a small disk of their own.
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], check=True)
    try:
        shutil.move(run / "checkpoints", disk / "checkpoints")
        (run / "checkpoints").symlink_to(disk / "checkpoints")
        begun = running.good_steps(run)[-1]
        second = running.Started(directory, "--workdir=run", by=AS_OTHERS)
        second.until(lambda: running.good_steps(run)[-1] > begun)
        with FAILURES[name](disk / "checkpoints"):
            began = time.monotonic()
            code, said = second.end(), second.said.partition("error: ")[2].strip()
            last, at = running.good_steps(run)[-1], running.logged(run)[-1]["step"]
        if code != 2 or f"last good checkpoint is step {last}." not in said:
            raise SystemExit(f"{name}: exit code {code}, last good step {last}: {second.said}")
        seconds = round(time.monotonic() - began, 1)
        if at > last + 2 * PERIOD:  # the save of the step after `last` fails within one more
            raise SystemExit(f"{name}: saved at {last}, stopped at {at}")
        if seconds > 60:  # no thread may hold it up
            raise SystemExit(f"{name}: it ended after {seconds} s")
        running.train(directory, "--workdir=run")
        equal = running.ending(run) == wanted
        found = {"last_good": last, "stopped": at, "code": code, "seconds": seconds, "equal": equal}
        return {"failure": name, **found, "said": said.replace(f"{directory}/", "")}
    finally:
        subprocess.run(["umount", disk], check=True)


# The record. --------------------------------------------------------------------------------------


def table(record: dict[str, Any]) -> str:
    """What came of damaged steps, as in README.md beside this file."""
    rows = [f"| damaged | how | tried | {PASSED_OVER} | {HARMLESS} |", "|---|---|---|---|---|"]
    for entry in (*record["faults"], total(record)):
        rows.append(f"| {' | '.join(map(str, entry.values()))} |")
    return "\n".join(rows)


def total(record: dict[str, Any]) -> dict[str, Any]:
    names = ("tried", PASSED_OVER, HARMLESS)
    counts = {name: sum(entry[name] for entry in record["faults"]) for name in names}
    return {"what": "all", "how": "", **counts}


def failures_table(record: dict[str, Any]) -> str:
    """What came of saves that failed, likewise."""
    rows = ["| failure | last good step | stopped at step | said | end |", "|---|---|---|---|---|"]
    for entry in record["failures"]:
        end = "equal" if entry["equal"] else "not equal"
        cells = (entry["failure"], entry["last_good"], entry["stopped"], entry["said"], end)
        rows.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(rows)


def summary(record: dict[str, Any]) -> str:
    """Lines of the table in the repository's README.md."""
    counts, failures = total(record), record["failures"]
    noticed = f"{counts[PASSED_OVER]}, and {counts[HARMLESS]} do no harm"
    stopped = sum(entry["code"] == 2 and entry["equal"] for entry in failures)
    return "\n".join([
        "| a checkpoint damaged: it is named and passed over, the one before restored to the bit "
        f"| {counts['tried']} | {noticed} |",
        "| saving fails (full disk, no permission): the run stops within a period, the last good "
        f"step named | {len(failures)} | {stopped} |",
    ])  # fmt: skip


def damaged(directory: Path) -> list[dict[str, Any]]:
    """Trains a run, and tries all faults on its checkpoints."""
    config = f"--config={running.ROOT}/configs/{TASK}.py:tiny=true"
    running.train(directory, config, "--workdir=run", "--config.save_every=2")
    checkpoints = directory / "run" / "checkpoints"
    structure = target(checkpoints / str(NEWEST))
    with Checkpoints(checkpoints) as saved:
        good = {step: saved.restore(structure, step)[1] for step in (BEFORE, NEWEST)}
    counted: dict[tuple[str, str], collections.Counter[str]] = {}
    for fault in faults(checkpoints / str(NEWEST)):
        with tempfile.TemporaryDirectory() as copy:
            shutil.copytree(checkpoints, Path(copy) / "checkpoints")
            outcome = tried(fault, Path(copy) / "checkpoints", good, structure)
        counted.setdefault((fault.what, fault.name), collections.Counter())[outcome] += 1
    return [
        {"what": what, "how": name, "tried": count.total()}
        | {outcome: count[outcome] for outcome in (PASSED_OVER, HARMLESS)}
        for (what, name), count in sorted(counted.items())
    ]


def failed(directory: Path) -> list[dict[str, Any]]:
    """Makes saves fail in the middle of a run, in each way."""
    config = f"--config={running.ROOT}/configs/{TASK}.py:tiny=true"
    arguments = (config, f"--config.data.dir={directory / 'data'}", *OFTEN)
    running.train(directory, "--workdir=run", *arguments)
    wanted = running.ending(directory / "run")
    return [stopped(name, wanted, directory / str(n), arguments) for n, name in enumerate(FAILURES)]


def main(_: list[str]) -> None:
    running.as_the_tests_do()
    record = running.where()
    with tempfile.TemporaryDirectory() as directory:
        record["faults"] = damaged(Path(directory))
    print(table(record), flush=True)
    with tempfile.TemporaryDirectory() as directory:
        record["failures"] = failed(Path(directory))
    Path(flags.FLAGS.out).write_text(json.dumps(record, indent=1) + "\n")
    print(failures_table(record))


if __name__ == "__main__":
    flags.DEFINE_string("out", None, "The record, JSON.", required=True)
    app.run(main)
