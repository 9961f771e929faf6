"""How far the losses on several devices, and of several processes, are from those on one device.

    python -m experiments.devices.losses --out=experiments/devices/losses.json

The tiny networks and random batches of tests/training/on_devices.py, whose slow tests hold the
bounds; here stands what the differences are. Prints the record as a table.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags

from experiments.faults import running
from tests.training.test_devices import on_devices
from tests.training.test_processes import on_processes

TASKS = ("captioning", "recognition", "contrastive", "diffusion")
STEPS = 100
DEVICES = 8
PROCESSES = (2, 4)
ONE = "pmap 1"
PATIENCE = 3600  # seconds for processes that share two cores with each other


def main(_: list[str]) -> None:
    """Adds what the record lacks: all tasks on devices, then of processes."""
    running.as_the_tests_do()
    out = Path(flags.FLAGS.out)
    record = json.loads(out.read_text()) if out.exists() else {"losses": {}, "gradient": {}}
    record |= {"jax": jax.__version__, "steps": STEPS}
    for count, task in itertools.product((0, *PROCESSES), TASKS):
        found = record["losses"].setdefault(task, {})
        if not count and ONE not in found:
            found |= _on_devices(task, record["gradient"])
        if count and f"pmap, {count} processes" not in found:
            found |= _of_processes(task, count)
        out.write_text(json.dumps(record) + "\n")
        print(task, f"{count} processes" if count else "devices", flush=True)
    print(table(record))


def _on_devices(task: str, gradient: dict[str, float]) -> dict[str, list[float]]:
    """{way: losses}; the first gradient's worst error, of its largest entry, is put aside."""
    report = on_devices(DEVICES, STEPS, task)
    gradient[task] = max(report["gradient_error"].values()) / report["largest"]
    ways = report["losses_of"].items()
    named = {f"{way} {DEVICES}" if way in ("jit", "fsdp") else way: x for way, x in ways}
    return {ONE: report["losses"]} | named


def _of_processes(task: str, count: int) -> dict[str, list[float]]:
    """{way: losses}, which all processes have found the same."""
    reports = [report["losses_of"] for report in on_processes(count, STEPS, task, PATIENCE)]
    assert all(report == reports[0] for report in reports)
    return {f"{way}, {count} processes": losses for way, losses in reports[0].items()}


def differences(record: dict[str, Any], steps: int) -> dict[str, dict[str, float]]:
    """{task: {way: the largest difference from one device over the first steps}}."""
    return {
        task: {
            way: float(np.abs(np.subtract(losses, found[ONE]))[:steps].max())
            for way, losses in found.items()
            if way != ONE
        }
        for task, found in record["losses"].items()
    }


def table(record: dict[str, Any]) -> str:
    """The record as Markdown: a row for each way."""
    few, all_ = differences(record, 30), differences(record, STEPS)
    tasks = list(few)
    lines = ["| | " + " | ".join(tasks) + " |", "|---" * (len(tasks) + 1) + "|"]
    for way in few[tasks[0]]:
        cells = [f"{few[task][way]:.0e} / {all_[task][way]:.0e}" for task in tasks]
        lines.append(f"| {way} | " + " | ".join(cells) + " |")
    first = {task: found[ONE][0] for task, found in record["losses"].items()}
    for name, values in (
        ("the first loss", first),
        ("the first gradient, of its largest entry, the worst", record["gradient"]),
    ):
        lines.append(f"| {name} | " + " | ".join(f"{values[task]:.2g}" for task in tasks) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    flags.DEFINE_string(
        "out", None, "The record, JSON; what it holds is not done again.", required=True
    )
    app.run(main)
