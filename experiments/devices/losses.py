"""How far the losses on several devices, and of several processes, are from those on one device.

    python -m experiments.devices.losses --out=experiments/devices/losses.json

The tiny networks and random batches of tests/training/on_devices.py, whose slow tests hold the
bounds; here stands what the differences are. Prints the record as a table.
"""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
from absl import app, flags

from experiments.faults import running
from tests.training.test_devices import on_devices
from tests.training.test_processes import on_processes

TASKS = ("diffusion", "recognition", "captioning", "contrastive")
STEPS = 100
DEVICES = 8
PROCESSES = (2, 4)


def main(_: list[str]) -> None:
    """Adds what the record lacks, task by task."""
    running.as_the_tests_do()
    out = Path(flags.FLAGS.out)
    record = json.loads(out.read_text()) if out.exists() else {}
    record |= {"jax": jax.__version__, "steps": STEPS}
    differences = record.setdefault("largest_difference", {})
    for task in TASKS:
        if task in differences:
            continue
        one = on_devices(DEVICES, STEPS, task)
        found = {
            f"{way} {DEVICES}" if way in ("jit", "fsdp") else way: _largest(losses, one)
            for way, losses in one["losses_of"].items()
        }
        for count in PROCESSES:
            name = f"{count} processes"
            reports = on_processes(count, STEPS, task)
            for way, losses in reports[0]["losses_of"].items():
                assert all(report["losses_of"][way] == losses for report in reports)
                found[f"{way}, {name}"] = _largest(losses, one)
        differences[task] = found
        record.setdefault("first_loss", {})[task] = one["losses"][0]
        worst = max(one["gradient_error"].values()) / one["largest"]
        record.setdefault("gradient", {})[task] = worst
        out.write_text(json.dumps(record, indent=1) + "\n")
        print(task, found, flush=True)
    print(table(record))


def _largest(losses: list[float], one: dict) -> dict[str, float]:
    """From the losses on one device: over the first 30 steps, and over all."""
    far = np.abs(np.subtract(losses, one["losses"]))
    return {"30": float(far[:30].max()), "100": float(far.max())}


def table(record: dict) -> str:
    """The record as Markdown: a row for each way."""
    tasks = record["largest_difference"]
    ways = list(next(iter(tasks.values())))
    lines = ["| | " + " | ".join(tasks) + " |", "|---" * (len(tasks) + 1) + "|"]
    for way in ways:
        cells = [f"{found[way]['30']:.0e} / {found[way]['100']:.0e}" for found in tasks.values()]
        lines.append(f"| {way} | " + " | ".join(cells) + " |")
    for name, key in (
        ("the first loss", "first_loss"),
        ("the first gradient, of its largest entry, the worst", "gradient"),
    ):
        lines.append(f"| {name} | " + " | ".join(f"{record[key][t]:.2g}" for t in tasks) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    flags.DEFINE_string(
        "out", None, "The record, JSON; what it holds is not done again.", required=True
    )
    app.run(main)
