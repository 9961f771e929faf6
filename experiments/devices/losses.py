"""How far the losses on several devices, and of several processes, are from those on one device.

    python -m experiments.devices.losses --out=experiments/devices/losses.json

The tiny networks and random batches of tests/training/on_devices.py, whose slow tests hold the
bounds; here stands what the differences are. On two cores half an hour.
"""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
from absl import app, flags

from tests.training.test_devices import on_devices
from tests.training.test_processes import on_processes

OUT = flags.DEFINE_string("out", None, "the record to write; what it holds is not done again",
                          required=True)  # fmt: skip
TASKS = flags.DEFINE_list(
    "tasks", ["diffusion", "recognition", "captioning", "contrastive"], "which tasks"
)
STEPS = 100
DEVICES = 8
PROCESSES = (2, 4)


def main(_: list[str]) -> None:
    """Adds what the record lacks, task by task."""
    out = Path(OUT.value)
    record = json.loads(out.read_text()) if out.exists() else {}
    record |= {"jax": jax.__version__, "steps": STEPS}
    differences = record.setdefault("largest_difference", {})
    for task in TASKS.value:
        one = on_devices(DEVICES, STEPS, task)
        found = differences.setdefault(task, {})
        found |= {way: _largest(losses, one) for way, losses in one["losses_of"].items()}
        for count in PROCESSES:
            name = f"{count} processes"
            if any(way.endswith(name) for way in found):
                continue
            reports = on_processes(count, STEPS, task)
            for way, losses in reports[0]["losses_of"].items():
                assert all(report["losses_of"][way] == losses for report in reports)
                found[f"{way}, {name}"] = _largest(losses, one)
        record.setdefault("first_loss", {})[task] = one["losses"][0]
        out.write_text(json.dumps(record, indent=1) + "\n")
        print(task, found, flush=True)


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
    first = [f"{record['first_loss'][task]:.2g}" for task in tasks]
    return "\n".join([*lines, "| the first loss | " + " | ".join(first) + " |"])


if __name__ == "__main__":
    app.run(main)
