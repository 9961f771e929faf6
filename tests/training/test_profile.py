"""A trace holds the steps that were asked for, and no others."""

from __future__ import annotations

import gzip
import json

import jax
import jax.numpy as jnp
import pytest
from etils import epath

from vision_lang.errors import InputError
from vision_lang.runs.folder import RunFolder
from vision_lang.training.profile import Profile


def traced(root):
    """The numbers of the steps in the trace of a run's folder; [] without a trace."""
    found = list(root.glob("plugins/profile/*/perfetto_trace.json.gz"))
    assert len(found) < 2
    texts = [gzip.decompress(file.read_bytes()) for file in found]
    events = [event for text in texts for event in json.loads(text)["traceEvents"]]
    return sorted(int(e["args"]["step_num"]) for e in events if e.get("name") == "train")


@pytest.mark.parametrize(
    ("steps", "begin", "end", "wanted"),
    [
        ((3, 4), 1, 6, [3, 4]),
        ((5, 9), 1, 6, [5, 6]),  # the run is over before
        ((3, 4), 4, 6, []),  # resumed behind the first
        ((0, 0), 1, 3, []),
    ],
)
def test_the_steps_that_are_traced(tmp_path, steps, begin, end, wanted):
    x, step, drained = jnp.zeros(3), jax.jit(lambda x: x + 1), []
    with Profile(
        RunFolder(epath.Path(tmp_path)), steps, lambda: drained.append(int(x[0]))
    ) as profile:
        for number in range(begin, end + 1):
            with profile.step(number):
                x = step(x)
            profile.after(number)
    assert traced(tmp_path) == wanted
    if wanted == [3, 4]:
        assert drained == [2, 4]  # before the first of them, and behind the last


@pytest.mark.parametrize("steps", [(4, 3), (1,), (1, 2, 3)])
def test_what_are_no_two_steps(tmp_path, steps):
    with pytest.raises(InputError, match="the first and the last step to trace are wanted"):
        Profile(RunFolder(epath.Path(tmp_path)), steps, lambda: None)
