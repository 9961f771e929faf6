"""One device or several, pmap or jit, one batch or micro-batches: the same training."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests import commands

ROOT = Path(__file__).resolve().parents[2]
DEVICES = "--xla_force_host_platform_device_count"


@functools.cache
def on_devices(count: int, steps: int, task: str) -> dict:
    """What tests/training/on_devices.py reports.

    Pools have ties: unoptimised programs round them apart, each in its own way, and send a gradient
    elsewhere (2e-3 of it, at the same loss to 1e-7). So a VGG is compiled as users have it.
    """
    flags = commands.QUICK if task == "diffusion" else ""
    done = subprocess.run(
        [sys.executable, "-m", "tests.training.on_devices", str(steps), task],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": f"{DEVICES}={count} {flags}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


pytestmark = pytest.mark.slow  # to compile for several devices takes more than a minute


CASES = [(4, 30, "diffusion"), (8, 100, "diffusion")]
OTHERS = ("recognition", "captioning", "contrastive", "clip", "autoencoder")
CASES += [(8, 100, task) for task in OTHERS]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[2]}-{case[0]}")
def report(request):
    return on_devices(*request.param)


@pytest.fixture(scope="module", params=CASES[:2], ids=lambda case: f"{case[2]}-{case[0]}")
def drawn(request):
    return on_devices(*request.param)


def test_gradients_of_the_first_step_agree(report):
    assert report["share_not_zero"] > 0.9
    assert {"pmap 2", "pmap 4", "jit", "fsdp"} <= set(report["gradient_error"])
    for way, error in report["gradient_error"].items():
        assert error <= 1e-5 * report["largest"], way


def test_losses_agree(report):
    steps = len(report["losses"])
    if "draws" in report:  # diffusion: of pictures of noise little can be known, but something;
        # of the words and classes that go with them nothing
        assert report["losses"][-1] < 0.95 * report["losses"][0]
    assert len(set(report["losses"])) == steps
    for way, error in report["loss_error"].items():
        assert error <= (1e-5 if steps <= 30 else 1e-3), way


def test_spread_rows_come_back_in_order(drawn):
    for way, squares in drawn["spread"].items():
        for rows, found in squares.items():
            expected = np.arange(6.0 * int(rows)).reshape(-1, 2, 3) ** 2
            np.testing.assert_array_equal(found, expected, err_msg=way)


def test_every_draw_is_the_example_s_own(drawn):
    draws = drawn["draws"]
    # Under jit the sum of image and noise is fused another way, and rounded another way; that the
    # noise is the same is what the losses say.
    rounded = draws["jit"]["digests"].pop("noisy")
    one = draws.pop("pmap 1")
    for way, other in draws.items():
        if way == "jit":
            other["digests"]["noisy"] = one["digests"]["noisy"]
        assert other == one, way  # bit for bit
    assert len(set(rounded)) == 2
    rows = 8
    for name in ("noisy", "time", "dropout", "dropout_of_text"):
        assert one["different"][name] == rows, name
        assert len(set(one["digests"][name])) == 2, name  # and each step's own
    assert 0 < sum(one["dropped"]) < rows
    assert one["digests"]["dropout"] != one["digests"]["noisy"]
