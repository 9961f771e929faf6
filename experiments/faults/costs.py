"""What safety costs: the time until a stopped run learns again, and what saving takes of a step.

    python -m experiments.faults.costs --out=experiments/faults/costs.json [--repeats=3]

Trains the default config on few pictures, with a save at each 20th step and a line in the log at
each 10th. The ten steps that follow a save pay for it: for the copy of the state, for which they
wait, and for the writing and hashing beside them. They are compared with the ten that come next,
pair by pair. Then the run is killed and started again, with what it had compiled and without.
Ten minutes on two cores that do nothing else.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from absl import app, flags

from experiments.faults import running
from vision_lang.runs import config as config_lib
from vision_lang.runs import writer

CONFIG = "diffusion"
EVERY = 10  # steps between two lines of the log; twice as many between two saves
PAIRS = 8
ARGUMENTS = (
    "--config.data.name=shapes/tiny", "--config.data.dir=data", "--config.eval_every=0",
    f"--config.log_every={EVERY}", f"--config.save_every={2 * EVERY}",
)  # fmt: skip


def saving(directory: Path) -> dict[str, Any]:
    """Trains for a while, then kills the run; returns what saving cost."""
    run = directory / "run"
    started = running.Started(
        directory, "--workdir=run", f"--config={running.ROOT}/configs/{CONFIG}.py", *ARGUMENTS
    )
    enough = 2 * EVERY * (PAIRS + 1)
    if not started.until(lambda: enough in running.good_steps(run), every=0.5):
        raise SystemExit(started.said)
    started.kill()
    config = json.loads((run / "config.json").read_text())
    speeds = {m["step"]: m["images/s"] for m in writer.read_metrics(run / "metrics.jsonl")}
    seconds = {step: config["batch_size"] / speed for step, speed in speeds.items()}  # of one step
    pairs = [  # after a save, and the ten steps after those
        (seconds[first + EVERY], seconds[first + 2 * EVERY])
        for first in range(2 * EVERY, enough, 2 * EVERY)
    ]
    state = run / "checkpoints" / str(enough)
    added = EVERY * statistics.median(one - other for one, other in pairs)
    step = statistics.median(other for _, other in pairs)
    default = config_lib.load(f"{running.ROOT}/configs/{CONFIG}.py").save_every
    return {
        "state_mb": sum(p.stat().st_size for p in state.rglob("*") if p.is_file()) / 1e6,
        "pairs": len(pairs),
        "step_seconds": step,
        "ratio": statistics.median(one / other for one, other in pairs),
        "seconds_per_save": added,
        "save_every": default,
        "share": added / (default * step),
    }


def resuming(directory: Path, home: Path) -> float:
    """Seconds from the command to the first new step of the run, which is then killed.

    Args:
      directory: holds the run.
      home: in which compiled programs are kept.
    """
    os.environ["HOME"] = str(home)
    began = time.monotonic()
    started = running.Started(directory, "--workdir=run")
    if not started.until(lambda: started.trains):
        raise SystemExit(started.said)
    seconds = time.monotonic() - began
    started.kill()
    return seconds


def table(record: dict[str, Any]) -> str:
    """As in README.md beside this file."""
    cost, again = record["saving"], record["resuming"]
    rows = {
        "state on the disk": f"{cost['state_mb']:.0f} MB",
        "a step": f"{cost['step_seconds']:.2f} s",
        f"ten steps with a save, to ten without (median of {cost['pairs']} pairs)": (
            f"{cost['ratio']:.3f}"
        ),
        "what one save adds": f"{cost['seconds_per_save']:.2f} s",
        f"share of the time, a save each {cost['save_every']} steps as in the config": (
            f"{100 * cost['share']:.2f} %"
        ),
    } | {
        f"from the command to the first new step, {name} (median of {len(times)})": (
            f"{statistics.median(times):.0f} s"
        )
        for name, times in again.items()
    }
    lines = [f"| {name} | {value} |" for name, value in rows.items()]
    return "\n".join(["| what | figure |", "|---|---|", *lines])


def summary(record: dict[str, Any]) -> str:
    """A sentence of the repository's README.md."""
    cost, again = record["saving"], record["resuming"]
    before, not_before = (f"{statistics.median(times):.0f} s" for times in again.values())
    return (
        f"Saving takes {100 * cost['share']:.2f} % of the time where the default config saves "
        f"each {cost['save_every']} steps ({cost['state_mb']:.0f} MB); a killed run learns again "
        f"{before} after the command, {not_before} where nothing was compiled before (two busy "
        "cores)."
    )


def main(_: list[str]) -> None:
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    record: dict[str, Any] = {"config": CONFIG, "arguments": " ".join(ARGUMENTS)}
    record |= {"load_before": os.getloadavg()[0], **running.where()}
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        os.environ["HOME"] = str(directory / "home")
        record["saving"] = saving(directory)
        print(record["saving"], flush=True)
        times: dict[str, list[float]] = {"compiled before": [], "not compiled before": []}
        resuming(directory, directory / "home")  # compiles what only a resumed run does
        for n in range(flags.FLAGS.repeats):
            times["compiled before"].append(resuming(directory, directory / "home"))
            times["not compiled before"].append(resuming(directory, directory / f"home{n}"))
            print(times, flush=True)
    record["resuming"] = times
    Path(flags.FLAGS.out).write_text(json.dumps(record, indent=1) + "\n")
    print(table(record))


if __name__ == "__main__":
    flags.DEFINE_string("out", None, "The record, JSON.", required=True)
    flags.DEFINE_integer("repeats", 3, "Starts with and without what was compiled.", lower_bound=1)
    app.run(main)
