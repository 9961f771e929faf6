"""Batch norm against NumPy in float64, alone and over devices. tests/parity knows torch's."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import commands
from vision_lang.models.batch_norm import BatchNorm
from vision_lang.training import parallel

RNG = np.random.default_rng(3)
ROWS, CHANNELS, EPSILON, KEPT = 8, 3, 1e-3, 0.8
NORM = BatchNorm(momentum=KEPT, epsilon=EPSILON)
PARAMS = {"scale": np.float32([0.5, -1.5, 2.0]), "bias": np.float32([0.3, 0.0, -1.0])}
STATS = {"mean": np.float32([0.1, -0.2, 30.0]), "var": np.float32([2.0, 0.5, 1.0])}
WEIGHT = np.array(
    [1, 1, 0, 1, 1, 1, 0, 0], np.float32
)  # of four devices the last has no row that counts


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def values():
    """[B, 5, 4, C]; of the last channel the mean is 300 times the deviation."""
    return normal(ROWS, 5, 4, CHANNELS) + np.float32([0, 1, 300])


def in_numpy(x, weight, params=PARAMS):
    """What training makes of x, and the mean and the unbiased variance of the rows that count."""
    rows = x[weight > 0].reshape(-1, CHANNELS).astype(np.float64)
    mean, var = rows.mean(0), rows.var(0)
    normalised = (x - mean) / np.sqrt(var + EPSILON) * params["scale"] + params["bias"]
    return normalised, mean, rows.var(0, ddof=1)


@jax.jit
def train(params, stats, x, weight):
    variables = {"params": params, "batch_stats": stats}
    y, updated = NORM.apply(variables, x, train=True, weight=weight, mutable=["batch_stats"])
    return y, updated["batch_stats"]


def test_training_and_running_statistics_are_those_of_numpy():
    stats, expected = STATS, {name: x.astype(np.float64) for name, x in STATS.items()}
    for weight in (WEIGHT, np.ones(ROWS, np.float32), WEIGHT[::-1]):
        x = values()
        y, stats = train(PARAMS, stats, x, weight)
        normalised, mean, var = in_numpy(x, weight)
        np.testing.assert_allclose(y, normalised, atol=2e-4)
        for name, new in (("mean", mean), ("var", var)):
            expected[name] = KEPT * expected[name] + (1 - KEPT) * new
            np.testing.assert_allclose(stats[name], expected[name], rtol=2e-6)
    x = values()
    y = NORM.apply({"params": PARAMS, "batch_stats": stats}, x, train=False)
    centred = (x - expected["mean"]) / np.sqrt(expected["var"] + EPSILON)
    np.testing.assert_allclose(y, centred * PARAMS["scale"] + PARAMS["bias"], atol=2e-4)


def test_rows_of_weight_0_do_not_reach_the_others():
    x = values()
    other = np.where(WEIGHT[:, None, None, None] > 0, x, 1e4)
    (y, stats), (changed, changed_stats) = (train(PARAMS, STATS, a, WEIGHT) for a in (x, other))
    np.testing.assert_array_equal(changed[WEIGHT > 0], y[WEIGHT > 0])
    jax.tree.map(np.testing.assert_array_equal, changed_stats, stats)
    y, stats = train(PARAMS, STATS, x, np.zeros(ROWS, np.float32))  # none that counts
    assert np.isfinite(y).all()
    jax.tree.map(np.testing.assert_array_equal, stats, STATS)


def test_the_gradient_is_that_of_numpy():
    x, direction, factors = values() - np.float32([0, 0, 300]), values(), values()
    scale = normal(CHANNELS)

    def loss(params, x):
        return (train(params, STATS, x, WEIGHT)[0] * factors).sum()

    by_params, by_x = jax.grad(loss, (0, 1))(PARAMS, x)
    slope = (by_params["scale"] * scale).sum() + (by_params["bias"] * scale).sum()
    slope += (by_x * direction).sum()

    def at(step):
        params = {name: value + step * scale.astype(np.float64) for name, value in PARAMS.items()}
        return (
            in_numpy(x + step * direction.astype(np.float64), WEIGHT, params)[0] * factors
        ).sum()

    np.testing.assert_allclose(slope, (at(1e-5) - at(-1e-5)) / 2e-5, rtol=1e-4)


@pytest.mark.parametrize("devices", [2, 4])
def test_over_devices_the_batch_is_one(devices):
    """Values, statistics and gradients are those of one device with all rows."""
    x, factors = values() - np.float32([0, 0, 290]), normal(ROWS, 5, 4, CHANNELS)

    def loss(params, x, weight, factors, across):
        y, updated = NORM.apply(
            {"params": params, "batch_stats": STATS},
            x,
            train=True,
            weight=weight,
            across=across,
            mutable=["batch_stats"],
        )
        return (y * factors).sum(), (y, updated["batch_stats"])

    gradient = jax.grad(loss, (0, 1), has_aux=True)
    alone = jax.jit(functools.partial(gradient, across=parallel.ONE_DEVICE))
    (by_params, by_x), (y, stats) = alone(PARAMS, x, WEIGHT, factors)
    split = lambda a: a.reshape(devices, -1, *a.shape[1:])  # noqa: E731
    mapped = jax.vmap(
        functools.partial(gradient, across=parallel.DEVICES),
        in_axes=(None, 0, 0, 0),
        axis_name=parallel.AXIS,
    )
    (each_params, each_x), (each_y, each_stats) = jax.jit(mapped)(
        PARAMS, split(x), split(WEIGHT), split(factors)
    )
    np.testing.assert_allclose(each_y, split(y), atol=1e-5)
    np.testing.assert_allclose(each_x, split(by_x), atol=1e-5 * np.abs(by_x).max())
    for name in PARAMS:
        total = each_params[name].sum(0)
        np.testing.assert_allclose(total, by_params[name], atol=1e-4)
    for name in STATS:
        assert len(np.unique(each_stats[name], axis=0)) == 1
        np.testing.assert_allclose(each_stats[name][0], stats[name], rtol=1e-6)


@pytest.mark.slow  # to compile for several devices
def test_a_vgg_trains_the_same_on_several_devices():
    """Under pmap and under jit, with dropout; see tests/models/vgg_on_devices.py."""
    flags = f"--xla_force_host_platform_device_count=4 {commands.QUICK}"
    done = subprocess.run(
        [sys.executable, "-m", "tests.models.vgg_on_devices"],
        cwd=Path(__file__).resolve().parents[2],
        env=os.environ | {"XLA_FLAGS": flags},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert set(report) == {"pmap 2", "pmap 4", "jit"}
    for way, errors in report.items():
        assert errors["gradient"] <= 1e-5 and errors["statistics"] <= 1e-6, way


def test_statistics_are_float32_in_bfloat16():
    x = jnp.asarray(values(), jnp.bfloat16)
    y, _ = train(PARAMS, STATS, x, WEIGHT)
    assert y.dtype == jnp.float32
    np.testing.assert_allclose(y, in_numpy(np.asarray(x, np.float64), WEIGHT)[0], atol=2e-4)
