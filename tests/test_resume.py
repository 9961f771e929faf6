"""train(20) = train(10), forget what came after, go on: bit for bit, for every task."""

from __future__ import annotations

import shutil

import pytest

from experiments.faults import running
from tests import commands


def train(directory, *arguments, quick=True):
    """In a process of its own: this one may have another number of devices."""
    process = commands.start(directory, "main", *arguments, quick=quick)
    _, err = process.communicate()
    assert process.returncode == 0, err


def go_on_from_10(run, *arguments, quick=True):
    """Resumes a copy of the finished run that has lost all behind step 10; compares the ends."""
    copy = run.parent / "again"
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "checkpoints" / "20")
    (copy / "final.json").unlink()
    (copy / "results.json").unlink()
    train(run.parent, "--workdir=again", *arguments, quick=quick)
    assert running.ending(copy) == running.ending(run)


def test_batch_statistics_resume_exactly(recogniser, tmp_path):
    """Also where the data lie elsewhere now."""
    shutil.copytree(recogniser.parent, tmp_path / "x")
    (tmp_path / "x" / "data").rename(tmp_path / "moved")
    go_on_from_10(tmp_path / "x" / "run", "--config.data.dir=../moved")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "more"),
    [
        ("recognition.py:tiny=true", ["--config.accumulate=2", "--config.workers=1"]),
        ("captioning.py:tiny=true", ["--config.accumulate=2"]),
        ("contrastive.py:tiny=true", []),
        ("diffusion.py:tiny=true", ["--config.accumulate=2"]),
        ("diffusion.py:tiny=true,condition=label", ["--config.data.label_key=scene/background"]),
    ],
)
def test_every_task_resumes_exactly(config, more, tmp_path):
    file = f"--config={commands.ROOT}/configs/{config}"
    train(tmp_path, file, "--workdir=run", *more, quick=False)
    go_on_from_10(tmp_path / "run", quick=False)
