"""config.parallel="fsdp": each device keeps a part of the state, and the training is the same.

That gradients and losses agree, also over processes: test_devices.py and test_processes.py.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

from tests import commands
from tests.training.test_devices import DEVICES
from tests.training.test_processes import assert_same_run, ends

CHECK = """
import jax
from tests.training.on_devices import Tokenizer, config, batch, ROWS
from vision_lang.training import parallel, setup

made = config("captioning")
made.parallel = "fsdp"
task = setup.make_task(made, Tokenizer(), 4)
for count in (1, 4):
    way = parallel.make("fsdp", ROWS, devices=jax.devices()[:count])
    step, state = setup.start(made, task, way.lay_out)
    for x in jax.tree.leaves(state):
        even = any(length % count == 0 for length in x.shape)
        part = x.addressable_shards[0].data.size
        assert part == (x.size // count if even and x.size >= parallel.SMALL else x.size), x.shape
    state = way.place_state(state)
    before = [(x.shape, x.sharding) for x in jax.tree.leaves(state)]
    rows = way.place(batch(0, 32))
    compiled = way.step(step).lower(state, rows).compile()
    used = compiled.memory_analysis()
    print(count, used.argument_size_in_bytes, used.temp_size_in_bytes)
    state, _ = compiled(state, rows)
    for (shape, where), x in zip(before, jax.tree.leaves(state), strict=True):
        assert where.is_equivalent_to(x.sharding, len(shape)), (shape, where, x.sharding)
"""


def test_each_device_keeps_its_part():
    """From the first array on, and after a step; what XLA says of the step's memory agrees."""
    devices = f"{DEVICES}=4 {commands.QUICK}"
    done = subprocess.run(
        [sys.executable, "-c", CHECK],
        cwd=commands.ROOT,
        env=os.environ | {"XLA_FLAGS": devices},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    kept, temporary = {}, {}
    for line in done.stdout.splitlines():
        count, kept[int(count)], temporary[int(count)] = map(int, line.split())
    assert kept[4] < 0.4 * kept[1]
    assert temporary[4] < 0.5 * temporary[1]


@pytest.mark.slow
def test_a_run_in_parts_is_the_run(captioner, tmp_path, monkeypatch):
    """Of the real command, its evaluators included, on four devices; resumed on two."""
    shutil.copytree(captioner.parent / "data", tmp_path / "data")
    config = f"--config={commands.ROOT}/configs/captioning.py:tiny=true"
    run = tmp_path / "run"
    begin = [config, "--config.parallel=fsdp", "--config.data.dir=data"]
    for count, more in ((4, begin), (2, [])):
        monkeypatch.setenv("XLA_FLAGS", f"{DEVICES}={count} {commands.QUICK}")
        (end,) = ends([commands.start(tmp_path, "main", "--workdir=run", *more)])
        assert end.code == 0, end.err
        assert_same_run(run, captioner)
        shutil.rmtree(run / "checkpoints" / "20")
    (end,) = ends([commands.start(tmp_path, "main", "--workdir=run", "--config.parallel=pmap")])
    assert "parallel: 'fsdp' -> 'pmap'" in end.sentence
    assert json.loads((run / "config.json").read_text())["parallel"] == "fsdp"
