"""Runs that are killed and started again, until they are done, end as others: to the bit."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from experiments.faults import kills, running
from experiments.faults.kills import Kill

ROOT = Path(__file__).resolve().parents[1]
STEPS = 20  # of the tiny configs


def killed(trained: Path, directory: Path, *chosen: Kill) -> list[str]:
    """Makes a run like `trained` in spite of the kills; returns their moments."""
    task = trained.parent.name
    shutil.copytree(trained.parent / "data", directory / "data")
    arguments = (
        f"--config={ROOT}/configs/{task}.py:tiny=true", "--config.data.dir=data",
        "--config.save_every=1",
    )  # fmt: skip
    moments, starts = kills.survive(directory / "run", arguments, chosen, (1.0, 1.0), STEPS)
    assert starts == len(moments) + 1
    assert running.ending(directory / "run") == running.ending(trained)
    return moments


def test_recognition_survives(recogniser, tmp_path):
    begun = killed(
        recogniser, tmp_path,
        Kill(kills.ANYWHERE), Kill(kills.SAVE, saves=3), Kill(kills.TRAINING, 0.0, workers=1),
    )  # fmt: skip
    assert begun[:2] == [kills.BEFORE, kills.IN_SAVE]
    assert begun[2] in (kills.BETWEEN, kills.IN_SAVE)


@pytest.mark.slow
def test_captioning_survives(captioner, tmp_path):
    begun = killed(captioner, tmp_path, Kill(kills.ANYWHERE), Kill(kills.SAVE, saves=2))
    assert begun == [kills.BEFORE, kills.IN_SAVE]


@pytest.mark.slow
@pytest.mark.parametrize("task", ["recognition", "diffusion"])
def test_more_kills_are_survived(task, tmp_path):
    entry = kills.tried(task, 6, 1, tmp_path)
    assert entry["kills"] == sum(entry["moments"].values()) == 6
    assert entry["equal"] == entry["runs"]
