"""What safety costs: the time until a stopped run learns again, and what saving takes of a step.

    python -m experiments.faults.costs --out=experiments/faults/costs.json [--repeats=3]

Trains the default config on few pictures, and counts the processor's seconds that a step takes;
then saves that run's state again and again, and counts the same of a save: copying, writing and
hashing. (By how much steps beside a save last longer is less than they differ by themselves.) The
run is killed, and started again with what it had compiled and without.
"""

from __future__ import annotations

import functools
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from absl import app, flags

from experiments.faults import running
from experiments.faults.checkpoints import target
from vision_lang.runs import config as config_lib
from vision_lang.runs.checkpoint import Checkpoints

CONFIG = "diffusion"
FROM, TO = 20, 60  # the steps that are counted
SAVES = 15
ARGUMENTS = (
    "--config.data.name=shapes/tiny", "--config.data.dir=data", "--config.eval_every=0",
    f"--config.save_every={FROM}",
)  # fmt: skip


def saving(directory: Path) -> dict[str, Any]:
    """Trains for a while, then kills the run; returns what saving costs."""
    run = directory / "run"
    started = running.Started(
        directory, "--workdir=run", f"--config={running.ROOT}/configs/{CONFIG}.py", *ARGUMENTS
    )
    counted = []
    for step in (FROM, TO):
        if not started.until(functools.partial(is_saved, run, step), every=0.1):
            raise SystemExit(started.said)
        counted.append(processor_seconds(started.process.pid))
    started.kill()
    step_seconds = (counted[1] - counted[0]) / (TO - FROM)  # with the saves between: a little more
    blocked, worked, size = saved_again(run / "checkpoints")
    default = config_lib.load(f"{running.ROOT}/configs/{CONFIG}.py").save_every
    return {
        "state_mb": size / 1e6,
        "step_processor_seconds": step_seconds,
        "save_waits_seconds": blocked,
        "save_processor_seconds": worked,
        "save_every": default,
        "share": worked / (default * step_seconds),
    }


def is_saved(run: Path, step: int) -> bool:
    return step in running.good_steps(run)


def saved_again(checkpoints: Path) -> tuple[float, float, int]:
    """Saves the run's state several times; returns medians and a size.

    Returns:
      The seconds for which a step has to wait, the processor's seconds of all that a save does, and
      the bytes of it.
    """
    path = checkpoints / str(TO)
    with Checkpoints(checkpoints) as saved:
        state = saved.restore(target(path), TO)[1]
    blocked, worked = [], []
    with tempfile.TemporaryDirectory() as directory, Checkpoints(directory) as saved:
        for step in range(SAVES):
            before, processor = time.monotonic(), time.process_time()
            saved.save(step, state)
            blocked.append(time.monotonic() - before)
            saved.wait()
            worked.append(time.process_time() - processor)
    size = sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
    return statistics.median(blocked), statistics.median(worked), size


def processor_seconds(pid: int) -> float:
    """That a process has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # utime, stime


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
        "a step, the processor's seconds": f"{cost['step_processor_seconds']:.2f} s",
        "a save, the processor's seconds": f"{cost['save_processor_seconds']:.2f} s",
        "a save, seconds for which the next step waits": f"{cost['save_waits_seconds']:.2f} s",
        f"share of saving, a save each {cost['save_every']} steps as in the config": (
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
        f"Saving takes {100 * cost['share']:.2f} % of the work where the default config saves "
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
