"""Kills training runs at random moments until they are done, and compares how they end.

    python -m experiments.faults.kills --out=experiments/faults/kills.json [--kills=60 --seed=0]

For each of four tasks a run that nothing disturbs, then victims: the same command, ended by SIGKILL
and started again, until a share of the kills has been made and every victim is done. A victim ends
as the other run did, to the bit, or this program says so and ends with 1. Prints the table of
README.md. Tasks that the record holds already are not tried again.
"""

from __future__ import annotations

import collections
import itertools
import json
import operator
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import app, flags

from experiments.faults import running
from vision_lang.runs import manifest

# Of three steps between two lines of the log and two between two saves, a state that is saved has
# sums of none, one or two steps for the next line.
OFTEN = ("--config.log_every=3", "--config.save_every=2", "--config.eval_every=24")
TASKS = {
    "diffusion": ("--config.steps=48", "--config.accumulate=2"),
    "recognition": ("--config.steps=120", "--config.accumulate=2"),  # with batch statistics
    "captioning": ("--config.steps=120",),
    "contrastive": ("--config.steps=120",),
}
WORKERS = (0, 0, 1)  # of a start, one of these

# What a kill is aimed at.
ANYWHERE = "at any time from the start on"
TRAINING = "at any time from the first step on"
SAVE = "in the middle of a save"
END = "after the last save"
# How often, and the shares of an undisturbed run's time, before its first step and from there on,
# that may pass until it comes.
AIMS = {
    ANYWHERE: (0.25, 1.0, 1.0), TRAINING: (0.25, 0.0, 0.3), SAVE: (0.4, 0.0, 0.005),
    END: (0.1, 0.0, 0.1),
}  # fmt: skip

# When it was made.
BEFORE, BETWEEN, IN_SAVE, IN_END = (
    "before the first step", "in training", "in a save", "in the last evaluation",
)  # fmt: skip
MOMENTS = (BEFORE, BETWEEN, IN_SAVE, IN_END)


Steps = set[tuple[str, int]]  # names, and when each has changed
Times = tuple[float, float]


class Kill(NamedTuple):
    """Where a kill is aimed.

    at: the share of what may pass of that time, [0, 1).
    saves: which save since the start it is, where a save is meant.
    workers: processes that read data, of the start that is killed.
    """

    aim: str
    at: float = 0.5
    saves: int = 1
    workers: int = 0


def drawn(*seed: int) -> Iterator[Kill]:
    """As many kills as are taken."""
    rng = np.random.default_rng(seed)
    while True:
        yield Kill(
            str(rng.choice(list(AIMS), p=[share for share, *_ in AIMS.values()])),
            float(rng.random()),
            int(rng.integers(1, 6)),
            int(rng.choice(WORKERS)),
        )


def survive(
    run: Path, arguments: Sequence[str], kills: Iterable[Kill], times: Times, steps: int
) -> tuple[list[str], int]:
    """Trains a run, killing it again and again, until it is done.

    Args:
      run: its folder, to be made beside its data.
      arguments: of the first start.
      kills: one after the other, taken as they are needed.
      times: about how many seconds an undisturbed run takes, before its first step and from there.
      steps: of the run.

    Returns:
      The moments of the kills, and the number of starts. Where the run is done before a kill comes,
      that one and the others are not made.
    """
    moments: list[str] = []
    for kill in (*kills, None):
        given = () if (run / "config.json").exists() else arguments
        workers = f"--config.workers={kill.workers if kill else 0}"
        before = unfinished(run)
        started = running.Started(run.parent, f"--workdir={run.name}", *given, workers)
        if kill and reached(kill, started, run, before, times, steps):
            started.kill()
            moments.append(moment(started, run, before, steps))
        elif started.end():
            raise RuntimeError(f"Exit code {started.process.returncode}: {started.said}")
        else:
            break
    return moments, len(moments) + 1


def reached(
    kill: Kill, started: running.Started, run: Path, before: Steps, times: Times, steps: int
) -> bool:
    """Waits for the moment of a kill; returns whether it came before the command ended."""
    begun: set[str] = set()

    def in_save() -> bool:
        begun.update(name for name, _ in unfinished(run) - before)
        return len(begun) >= kill.saves

    comes = {
        ANYWHERE: lambda: True,
        TRAINING: lambda: started.trains,
        SAVE: in_save,
        END: lambda: steps in running.good_steps(run),
    }[kill.aim]
    if not started.until(comes):
        return False
    shares = AIMS[kill.aim][1:]
    end = time.monotonic() + kill.at * sum(map(operator.mul, shares, times))
    return started.until(lambda: time.monotonic() >= end)


def unfinished(run: Path) -> Steps:
    """The steps that have no manifest, each with the time of its last change."""
    found = set()
    for path in (run / "checkpoints").glob("[0-9]*"):
        try:
            if not (path / manifest.NAME).exists():
                found.add((path.name, path.stat().st_mtime_ns))
        except FileNotFoundError:  # an old step that is just being deleted
            continue
    return found


def moment(started: running.Started, run: Path, before: Steps, steps: int) -> str:
    """When a run was killed, as what it has left shows it."""
    if unfinished(run) - before:
        return IN_SAVE
    if steps in running.good_steps(run) and (started.trains or f"step {steps}." in started.said):
        return IN_END
    return BETWEEN if started.trains else BEFORE


def tried(task: str, count: int, seed: int, directory: Path) -> dict[str, Any]:
    """Kills runs of one task; returns the record."""
    chosen = (*OFTEN, *TASKS[task])
    config = f"--config={running.ROOT}/configs/{task}.py:tiny=true"
    arguments = (config, "--config.data.dir=data", *chosen)
    steps = int(TASKS[task][0].partition("=")[2])
    began = time.monotonic()
    alone = directory / "alone"
    alone.mkdir(parents=True)
    running.train(alone, "--workdir=first", *arguments)  # compiles
    times = running.train(alone, "--workdir=second", *arguments)
    wanted = running.ending(alone / "first")
    if running.ending(alone / "second") != wanted:
        raise SystemExit(f"{task}: two runs that nothing disturbed differ.")
    kills = drawn(seed, list(TASKS).index(task))
    moments: list[str] = []
    equal: list[bool] = []
    starts = 0
    while len(moments) < count:  # a victim that is done too early is followed by another
        victim = directory / f"victim{len(equal)}" / "run"
        victim.parent.mkdir()
        left = itertools.islice(kills, count - len(moments))
        made, begun = survive(victim, arguments, left, times, steps)
        moments, starts = moments + made, starts + begun
        equal.append(running.ending(victim) == wanted)
        print(f"{task}: {len(moments)} kills, {starts} starts, equal: {equal}", flush=True)
    counted = collections.Counter(moments)
    return {
        "task": task,
        "arguments": " ".join(chosen),
        "kills": len(moments),
        "moments": {name: counted[name] for name in MOMENTS},
        "starts": starts,
        "runs": len(equal),
        "equal": sum(equal),
        "seconds": round(time.monotonic() - began),
    }


def table(record: dict[str, Any]) -> str:
    """What came of the kills, as in README.md beside this file."""
    rows = [
        f"| task | kills | {' | '.join(MOMENTS)} | starts | runs | equal |",
        "|---" * (len(MOMENTS) + 5) + "|",
    ]
    tasks = record["tasks"]
    total: dict[str, Any] = {"task": "all"}
    total |= {name: sum(t[name] for t in tasks) for name in ("kills", "starts", "runs", "equal")}
    total["moments"] = {name: sum(t["moments"][name] for t in tasks) for name in MOMENTS}
    for entry in (*tasks, total):
        cells = (
            entry["task"], entry["kills"], *(entry["moments"][name] for name in MOMENTS),
            entry["starts"], entry["runs"], entry["equal"],
        )  # fmt: skip
        rows.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(rows)


def summary(record: dict[str, Any]) -> str:
    """Lines of the table in the repository's README.md."""
    tasks = record["tasks"]
    kills = sum(entry["kills"] for entry in tasks)
    saves = sum(entry["moments"][IN_SAVE] for entry in tasks)
    survived = kills if all(t["equal"] == t["runs"] for t in tasks) else "not all"
    return (
        f"| SIGKILL at random moments, {saves} of them in a save: the run goes on and ends the "
        f"same to the bit | {kills} | {survived} |"
    )


def main(_: list[str]) -> None:
    running.as_the_tests_do()
    count, seed = flags.FLAGS.kills, flags.FLAGS.seed
    out = Path(flags.FLAGS.out)
    record = json.loads(out.read_text()) if out.exists() else {"seed": seed, "tasks": []}
    done = [entry["task"] for entry in record["tasks"]]
    if record["seed"] != seed:
        raise SystemExit(f"{out} is of another seed.")
    for task in TASKS:
        if task in done:
            continue
        with tempfile.TemporaryDirectory() as directory:
            entry = tried(task, -(-count // len(TASKS)), seed, Path(directory))
        record["tasks"].append(entry | running.where())
        out.write_text(json.dumps(record, indent=1) + "\n")
    print(table(record))
    sys.exit(any(entry["equal"] < entry["runs"] for entry in record["tasks"]))


if __name__ == "__main__":
    flags.DEFINE_string("out", None, "The record, JSON.", required=True)
    flags.DEFINE_integer("kills", 60, "Shared evenly by the tasks.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "Of the moments.")
    app.run(main)
