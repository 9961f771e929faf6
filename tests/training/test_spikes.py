"""What is called a spike of the loss, and what is not."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from vision_lang.training.spikes import FEWEST, WINDOWS, Spikes


def told(caplog, losses, spikes=None):
    """The places of the losses that were warned of."""
    caplog.clear()
    spikes = spikes or Spikes(50, {})
    for step, loss in enumerate(losses):
        spikes.add(step, float(loss))
    return [int(re.findall(r"Step (\d+): the loss jumped to", m)[0]) for m in caplog.messages]


def noise(kind, count, seed=0):
    """Losses as a log has them: means over windows, around a level or a curve that falls."""
    rng = np.random.default_rng(seed)
    normal = rng.standard_normal(count)
    if kind == "slow":  # each window shares most of its noise with the one before
        for n in range(1, count):
            normal[n] = 0.9 * normal[n - 1] + np.sqrt(1 - 0.9**2) * normal[n]
    curve = {"falling": 0.3 + np.exp(-np.arange(count) / 500)}.get(kind, np.ones(count))
    return curve + 0.1 * normal


@pytest.mark.parametrize("kind", ["level", "falling", "slow"])
def test_a_spike_is_found_and_noise_is_not(caplog, kind):
    """10,000 windows of noise: nothing; a window at three times the level: that one."""
    losses = noise(kind, 10_000)
    assert told(caplog, losses) == []
    losses[5_000] += 2
    assert told(caplog, losses) == [5_000]
    assert "(mean of 50 steps). The median of the 32 means before it is" in caplog.text


def test_a_higher_level_is_told_until_it_is_the_usual_one(caplog):
    losses = noise("level", 200)
    losses[100:] += 5
    assert told(caplog, losses) == list(range(100, 100 + WINDOWS // 2))


def test_a_loss_that_falls_or_hardly_moves_is_no_spike(caplog):
    losses = np.concatenate([noise("level", 50), noise("level", 50) - 0.9, [0.1] * 50, [0.109]])
    assert told(caplog, losses) == []
    assert told(caplog, [1.0] * FEWEST + [1.11]) == [FEWEST]  # a tenth above what never moved
    assert told(caplog, [1.0] * (FEWEST - 1) + [1.11]) == []  # too little is known


def test_a_resumed_run_compares_with_the_same_windows(caplog):
    losses = noise("level", 60)
    losses[[40, 41]] += 3
    whole = told(caplog, losses)
    first = Spikes(50, {})
    assert told(caplog, losses[:41], first) == [40]
    notes = json.loads(json.dumps(first.notes()))
    assert told(caplog, losses[41:], Spikes(50, notes)) == [0] and whole == [40, 41]
    assert told(caplog, losses[41:], Spikes(10, notes)) == []  # other windows, other noise
