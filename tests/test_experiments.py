"""The commands in experiments/, on a finished tiny run."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments import exact, neighbours, papers
from experiments.devices import losses, memory
from experiments.samplers import analytic

ROOT = Path(__file__).resolve().parents[1]
TASKS = ("recognition", "captioning", "contrastive", "diffusion")  # as README.md has them


@pytest.fixture
def beside(trained, tmp_path, monkeypatch):
    """A folder in which `run` is the finished run, with its data."""
    for name in ("data", "run"):
        os.symlink(trained.parent / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_neighbours_writes_a_row_for_each_caption(beside, command):
    outcome = command(
        neighbours.main, "--run=run", "--count=3", "--samples=2", "--guidance=2", "--out=page.png"
    )
    assert outcome.code == 0, outcome.err
    assert "of 6 samples" in outcome.out and "of 3 real ones" in outcome.out
    with Image.open(beside / "page.png") as page:
        width, height = page.size
    assert width > height  # three rows of the real picture, two samples and two neighbours


def test_neighbours_refuses_a_split_that_is_not_there(beside, command):
    assert "tset" in command(neighbours.main, "--run=run", "--split=tset").sentence


@pytest.mark.slow
def test_exact_judges_the_exact_denoiser_right(beside, command):
    outcome = command(exact.main, "--run=run", "--count=2")
    assert outcome.code == 0, outcome.err
    rows = [line.split() for line in outcome.out.splitlines() if line[:8].strip()[:2] == "0."]
    assert len(rows) == 2 * len(exact.LEVELS)
    exactly, network = np.array([row[1:3] for row in rows], float).T
    assert (exactly < network).all()  # nothing surpasses the exact mean; 20 steps do not reach it


@pytest.mark.parametrize("study", papers.studies(), ids=lambda study: study.name)
def test_tables_are_those_of_the_records(study):
    """What `make papers` would write is there; a picture depends on matplotlib's version too."""
    made = papers.made_of(study)
    texts = {name: content for name, content in made.items() if isinstance(content, str)}
    assert {name: (study / name).read_text() for name in texts} == texts
    assert all((study / name).exists() for name in made)


def test_samplers_have_their_orders_as_recorded():
    folder = Path(analytic.__file__).parent
    record = json.loads((folder / "analytic.json").read_text())
    for table in analytic.tables(record).split("\n\n"):
        assert table in (folder / "README.md").read_text()
    orders = {"ddim": 1, "heun": 2, "dpmpp_2m": 2}
    for found in record["between"].values():
        assert {name: analytic.slope(errors) for name, errors in found.items()} == pytest.approx(
            orders, abs=0.1
        )


def test_losses_of_devices_are_as_recorded():
    """And within the bounds that the slow tests hold."""
    folder = Path(losses.__file__).parent
    record = json.loads((folder / "losses.json").read_text())
    assert losses.table(record) in (folder / "README.md").read_text()
    ways = {f"pmap {n}" for n in (2, 4, 8)} | {"jit 8", "fsdp 8"}
    ways |= {f"{way}, {n} processes" for way in ("pmap", "jit", "fsdp") for n in (2, 4)}
    for steps, bound in ((30, 1e-5), (100, 1e-3)):
        for found in losses.differences(record, steps).values():
            assert set(found) == ways and max(found.values()) <= bound
    readme = (ROOT / "README.md").read_text()
    for name, several in (("2, 4 and 8 devices", False), ("2 and 4 processes", True)):
        worst = [
            max(far for way, far in found.items() if ("processes" in way) == several)
            for found in (losses.differences(record, 100)[task] for task in TASKS)
        ]
        assert f"| {name} | {' | '.join(f'{far:.0e}' for far in worst)} |" in readme
    assert max(record["gradient"].values()) <= 1e-5 and set(record["gradient"]) == set(losses.TASKS)


def test_memory_of_devices_is_as_recorded():
    """And it falls with their number where each keeps a part of the state."""
    folder = Path(memory.__file__).parent
    record = json.loads((folder / "memory.json").read_text())
    assert memory.table(record) in (folder / "README.md").read_text()
    found = record["megabytes"]
    kept = [found[f"fsdp {count}"]["state"] * count for count in memory.COUNTS]
    assert kept == pytest.approx([found["jit 1"]["state"]] * len(kept), rel=0.02)
    temporary = [found[f"fsdp {count}"]["temporaries"] for count in memory.COUNTS]
    assert temporary == sorted(temporary, reverse=True)
