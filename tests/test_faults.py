"""The records of faults: the READMEs say what was recorded, and what was recorded is good."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from experiments.faults import checkpoints, costs, kills

ROOT = Path(__file__).resolve().parents[1]
FAULTS = ROOT / "experiments" / "faults"


def record(name):
    return json.loads((FAULTS / f"{name}.json").read_text())


def words(text):
    """Without the line breaks of a text."""
    return " ".join(text.split())


@pytest.mark.parametrize(
    ("name", "tables"),
    [
        ("kills", [kills.table]),
        ("checkpoints", [checkpoints.table, checkpoints.failures_table]),
        ("costs", [costs.table]),
    ],
)
def test_the_tables_are_those_of_the_records(name, tables):
    for table in tables:
        assert table(record(name)) in (FAULTS / "README.md").read_text()


def test_the_summaries_are_those_of_the_records():
    readme = words((ROOT / "README.md").read_text())
    for module, name in ((kills, "kills"), (checkpoints, "checkpoints"), (costs, "costs")):
        assert words(module.summary(record(name))) in readme


def test_every_kill_was_survived():
    tasks = record("kills")["tasks"]
    assert [entry["task"] for entry in tasks] == list(kills.TASKS)
    assert sum(entry["kills"] for entry in tasks) >= 50
    assert all(entry["equal"] == entry["runs"] for entry in tasks)
    assert all(entry["moments"][kills.IN_SAVE] for entry in tasks)


def test_every_fault_was_tried():
    names = {(entry["what"], entry["how"]) for entry in record("checkpoints")["faults"]}
    assert names == (
        {(what, how) for what in ("file", "manifest") for how in checkpoints.TO_A_FILE}
        | {("step", how) for how in checkpoints.TO_A_STEP}
    )
    failures = record("checkpoints")["failures"]
    assert [entry["failure"] for entry in failures] == list(checkpoints.FAILURES)
    assert all(entry["equal"] and entry["code"] == 2 for entry in failures)


@pytest.mark.slow
def test_every_fault_is_noticed(tmp_path):
    """Whatever else comes of one ends this."""
    assert sum(entry["tried"] for entry in checkpoints.damaged(tmp_path)) > 100


@pytest.mark.slow
@pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("setpriv"), reason="mounts a small disk, as root"
)
def test_a_save_that_fails_stops_the_run_and_loses_nothing(tmp_path):
    assert all(entry["equal"] for entry in checkpoints.failed(tmp_path))
