"""Averages along the training: their profiles, and any length of those that were stored."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from ml_collections import ConfigDict

from tests.training import line
from vision_lang.errors import InputError
from vision_lang.runs import checkpoint
from vision_lang.runs import config as config_lib
from vision_lang.training import averages, stored
from vision_lang.training.averages import Stored

STDS = (0.05, 0.1, 0.2, 0.28)


def updated(spec, path):
    """The average of the rows of a path after each of them, as a step makes it, float32."""
    moves = np.asarray(averages.move("x", spec)(jnp.arange(len(path), dtype=jnp.float32)))
    average, seen = np.zeros(path.shape[1], np.float32), []
    for far, row in zip(moves, path.astype(np.float32), strict=True):
        average = average + far * (row - average)
        seen.append(average)
    return seen


def walk(steps, width=400):
    """Parameters that move on, ever more slowly, and tremble."""
    rng = np.random.default_rng(0)
    step = rng.normal(size=(steps, width)) / np.sqrt(1 + np.arange(steps))[:, None]
    return step.cumsum(0) + 0.3 * rng.normal(size=(steps, width))


@pytest.mark.parametrize("std", STDS)
def test_the_exponent_gives_the_deviation(std):
    density = (averages.exponent(std) + 1) * (t := np.linspace(0, 1, 200_001)) ** averages.exponent(
        std
    )
    mean, square = (np.trapezoid(density * t**k, t) for k in (1, 2))
    assert np.sqrt(square - mean**2) == pytest.approx(std, rel=1e-4)


@pytest.mark.parametrize("std", STDS)
def test_an_average_has_its_profile(std):
    path = walk(300)
    seen = updated({"std": std}, path)
    for t in (1, 2, 57, 300):
        weights = averages.profile(t, std)
        assert weights.sum() == pytest.approx(1) and len(weights) == t
        np.testing.assert_allclose(seen[t - 1], weights @ path[:t], atol=3e-6)


def test_the_decaying_average():
    path = walk(40)
    wanted = np.zeros(path.shape[1])
    for n, row in enumerate(path):
        decay = min(0.8, (1 + n) / (10 + n))
        wanted = decay * wanted + (1 - decay) * row
    np.testing.assert_allclose(updated({"decay": 0.8}, path)[-1], wanted, atol=1e-5)


@pytest.mark.parametrize("std", [0.07, 0.15, 0.2])
def test_any_length_is_made_of_two(std, monkeypatch):
    """Against that average, tracked directly: as near as the profiles are, and far nearer than the
    nearest of those that were stored."""
    path, every = walk(2000), 125
    monkeypatch.setattr(averages, "BLOCK", 300)  # several blocks are one factorisation
    tracked = {s: updated({"std": s}, path) for s in (0.05, 0.1, std)}
    stored = [Stored(t, s) for t in range(every, 2001, every) for s in (0.05, 0.1)]
    factors, error = averages.mixture(stored, Stored(2000, std))
    made = sum(f * tracked[s][t - 1] for f, (t, s) in zip(factors, stored, strict=True))
    distance = lambda x: np.sqrt(np.mean((x - tracked[std][-1]) ** 2))  # noqa: E731
    nearest = min(distance(tracked[s][t - 1]) for t, s in stored)
    assert error < 0.03 and distance(made) < 0.1 * nearest


def test_what_is_stored_is_made_exactly():
    stored = [Stored(50, 0.05), Stored(50, 0.1), Stored(100, 0.05), Stored(100, 0.1)]
    factors, error = averages.mixture(stored, Stored(100, 0.1))
    np.testing.assert_allclose(factors, [0, 0, 0, 1], atol=1e-9)
    assert error < 1e-9


@pytest.fixture(scope="module")
def stored_run(tmp_path_factory):
    """A folder with every fourth step of 60, and the last state."""
    path = epath.Path(tmp_path_factory.mktemp("averages") / "run")
    ema = ConfigDict({name: {"std": s} for name, s in (("a", 0.05), ("b", 0.1), ("own", 0.18))})
    config = line.config(ema=ema, steps=60)
    trainer = line.Trainer(line.Line(), config)
    with checkpoint.Checkpoints(path / "checkpoints", keep_period=4) as saved:
        for step in range(1, 61):
            batch = line.batch(step)
            if step == 31:  # skipped: it counts in no average
                batch["x"][0, 0] = np.nan
            trainer(batch)
            if step % 4 == 0:
                saved.save(step, line.host(trainer.state))
    del config.ema["own"]
    (path / "config.json").write_text(config_lib.to_json(config))
    return path, trainer.state


def test_another_length_of_a_run(stored_run):
    """What its checkpoints give is what was tracked all along; its own and earlier ones as well."""
    path, state = stored_run
    assert int(state.ema["own"].count) == 59
    tracked = {name: line.host(state.ema[name].params) for name in ("a", "b", "own")}
    raw = line.host(state.params)
    told, made = stored.weights_of(f"{path}:std=0.18")
    assert told.startswith(f"{path}@60 (std=0.18 of 30 averages, its profile to ")
    for name, wanted in tracked["own"].items():
        near = min(np.abs(tracked[other][name] - wanted).max() for other in ("a", "b"))
        assert made[f"params/{name}"].dtype == np.float32
        assert np.abs(made[f"params/{name}"] - wanted).max() < 0.1 * near
        assert np.abs(raw[name] - wanted).max() > near
    for std, name in ((0.05, "a"), (0.1, "b")):
        _, same = stored.weights_of(f"{path}:std={std}")
        for leaf, wanted in tracked[name].items():
            np.testing.assert_allclose(same[f"params/{leaf}"], wanted, rtol=1e-6)
    assert "@32 (std=0.1 of 16 averages" in stored.weights_of(f"{path}@32:std=0.1")[0]


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("@31:std=0.1", "no good checkpoint of step 31"),
        (":std=0.5", "a number between 0 and 0.289 is wanted"),
        (":std=1.2.3", r"std=1\.2\.3: a number is wanted"),
        (":std=x", "does not exist"),
    ],
)
def test_wrong_specs(stored_run, spec, sentence):
    with pytest.raises(InputError, match=sentence):
        stored.weights_of(f"{stored_run[0]}{spec}")


def test_wrong_weights():
    with pytest.raises(InputError, match="--weights=emma: ema, raw or std=S is wanted"):
        stored.spec("run", "emma")


def test_a_run_without_such_averages(trained):
    with pytest.raises(InputError, match="keeps no power-function averages"):
        stored.weights_of(f"{trained}:std=0.1")


@pytest.mark.parametrize("std", [0.0, -0.1, 0.3])
def test_deviations_that_no_power_has(std):
    with pytest.raises(InputError, match="a number between 0 and 0.289 is wanted"):
        averages.exponent(std)


@pytest.mark.parametrize("spec", [{}, {"decay": 0.9, "std": 0.1}, {"length": 3}])
def test_what_is_no_average(spec):
    with pytest.raises(InputError, match=r"config\.ema\.x has the fields .* is wanted"):
        averages.move("x", spec)
