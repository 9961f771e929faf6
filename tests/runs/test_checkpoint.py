"""Checkpoints: what was saved comes back bit for bit, or an error says what is still good."""

import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.runs.states import like, save, state
from vision_lang.errors import InputError
from vision_lang.runs import manifest
from vision_lang.runs.checkpoint import CheckpointError, Checkpoints, restore_part
from vision_lang.runs.records import digest

ROOT = Path(__file__).resolve().parents[2]


def test_a_state_comes_back_bit_for_bit_with_its_types(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saved = state(5)
    with Checkpoints("run/checkpoints") as checkpoints:  # a relative path
        checkpoints.save(5, saved)
        step, restored = checkpoints.restore(like(saved))
    assert step == 5 and digest(restored) == digest(saved)
    assert str(jax.tree.structure(restored)) == str(jax.tree.structure(saved))
    assert type(restored["window"][1]) is int and type(restored["window"][3]) is bool
    assert isinstance(restored["params"]["w"], jax.Array)
    assert not restored["params"]["w"].committed


def test_targets_without_arrays_give_numpy(tmp_path):
    save(tmp_path, 1)
    target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(*_spec(x)), state(1))
    with Checkpoints(tmp_path) as checkpoints:
        _, restored = checkpoints.restore(target)
    assert all(isinstance(x, (np.ndarray, np.generic)) for x in jax.tree.leaves(restored))
    assert digest(restored) == digest(state(1))


def _spec(leaf):
    return np.shape(leaf), leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype


def test_a_donated_or_overwritten_state_is_saved_as_it_was(tmp_path):
    saved = state(1, size=300_000)
    saved["numpy"] = np.arange(300_000)
    before = digest(saved)
    step = jax.jit(lambda s: jax.tree.map(lambda x: x * 3, s), donate_argnums=0)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, saved)
        saved["numpy"][:] = -1
        step({"params": saved["params"], "ema": saved["ema"]})
        checkpoints.wait()
        restored = checkpoints.restore(like(state(1, 300_000)) | {"numpy": saved["numpy"]})[1]
    assert digest(restored) == before


def test_saving_does_not_wait_for_the_disk_and_a_step_counts_when_complete(tmp_path, monkeypatch):
    release, write = threading.Event(), manifest.write

    def late(*arguments):
        release.wait(30)
        write(*arguments)

    monkeypatch.setattr(manifest, "write", late)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state(1))
        assert checkpoints.steps() == [] and checkpoints.latest() is None
        release.set()
        checkpoints.wait()
        assert checkpoints.steps() == [1]


def test_old_steps_go_and_the_best_stays(tmp_path):
    with Checkpoints(tmp_path, keep=2, keep_period=40, keep_best="loss:min") as checkpoints:
        for step, loss in zip(range(10, 80, 10), [5, 1, 4, 3, np.nan, 2, 6], strict=True):
            checkpoints.save(step, state(step), {"loss": np.float32(loss)})
        checkpoints.wait()
        assert checkpoints.steps() == [20, 40, 60, 70]
        assert checkpoints.restore(state(), step=20)[1]["step"] == 20
        with pytest.raises(InputError, match="'loss', which is not measured"):
            checkpoints.save(80, state(80), {"val/loss": 1.0})
        checkpoints.wait()
        assert checkpoints.latest() == 80  # it complains when the step is safe
    assert manifest.read(tmp_path / "70")["metrics"] == {"loss": 6.0}


def test_a_good_step_is_never_overwritten(tmp_path):
    save(tmp_path, 1)
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(CheckpointError, match="Step 1 is saved already"):
            checkpoints.save(1, state(2))
        assert digest(checkpoints.restore(state())[1]) == digest(state(1))


def test_notes_come_back_as_they_were(tmp_path):
    notes = {"skipped": 3, "losses": [1 / 3, 2e-300], "none": None}
    with Checkpoints(tmp_path, config_hash="abc") as checkpoints:
        checkpoints.save(1, state(1), notes=notes)
        checkpoints.save(2, state(2))
        checkpoints.wait()
        assert checkpoints.notes(1) == notes and checkpoints.notes(2) == {}


def test_a_step_of_another_config_is_refused_and_one_without_a_hash_is_not(tmp_path, monkeypatch):
    run = tmp_path / "mine"
    with Checkpoints(run / "checkpoints", config_hash="a" * 64) as checkpoints:
        checkpoints.save(1, state(1))
        assert checkpoints.restore(state())[0] == 1
    refused = pytest.raises(CheckpointError)
    with Checkpoints(run / "checkpoints", config_hash="b" * 64) as checkpoints, refused as caught:
        checkpoints.restore(state())
    for part in (f"{run}/checkpoints/1'", "a" * 12, f"'{run}'", "b" * 12, "copied from another"):
        assert part in str(caught.value)
    assert restore_part(run / "checkpoints", ["params"])[0] == 1  # asks for no config
    write = manifest.files.write_json

    def older(path, tree):
        content = {n: v for n, v in tree["content"].items() if n not in ("config", "notes")}
        write(path, {"content": content, "sha256": manifest._digest(content)})

    monkeypatch.setattr(manifest.files, "write_json", older)
    save(run / "checkpoints", 2)
    with Checkpoints(run / "checkpoints", config_hash="b" * 64) as checkpoints:
        assert checkpoints.restore(state())[0] == 2 and checkpoints.notes(2) == {}


def test_every_leaf_that_does_not_fit_is_named(two_steps):
    target = state()
    target["params"]["w"] = target["params"]["w"].reshape(-1)
    target["params"]["half"] = target["params"]["half"].astype(jnp.float32)
    target["params"]["new"] = jnp.ones(2)
    del target["step"]
    with Checkpoints(two_steps) as checkpoints:
        with pytest.raises(CheckpointError) as caught:
            checkpoints.restore(target)
        lines = [line.strip() for line in str(caught.value).splitlines()[1:]]
        assert lines == [
            "params/half: bfloat16[3], wanted float32[3]",
            "params/new: missing in the checkpoint (wanted float32[2])",
            "params/w: float32[200,1], wanted float32[200]",
            "step: only in the checkpoint (int32[])",
        ]


def test_weights_alone(two_steps):
    step, parts = restore_part(two_steps, ["params", "ema/default", "step"])
    assert step == 20 and set(parts) == {"params", "ema/default", "step"}
    assert digest(parts["params"]) == digest(state(20)["params"])
    assert digest(parts["ema/default"]) == digest(state(20)["ema"]["default"])
    assert all(type(x) is np.ndarray for x in jax.tree.leaves(parts)) and parts["step"] == 20
    assert restore_part(two_steps, ["step"], step=10)[1]["step"] == 10
    with pytest.raises(CheckpointError, match="no 'ema/defualt'. Did you mean 'ema/default'"):
        restore_part(two_steps, ["ema/defualt"])


@pytest.mark.parametrize(
    ("leaf", "words"), [("text", "word is a str"), (jax.random.key(0), "word is a PRNG key")]
)
def test_leaves_that_are_no_numbers_are_refused(tmp_path, leaf, words):
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(CheckpointError, match=words):
        checkpoints.save(1, {"word": leaf})
    with pytest.raises(CheckpointError):
        checkpoints.close()
    assert checkpoints.steps() == []


DEVICES = """
    import sys
    import jax, jax.numpy as jnp, numpy as np
    from jax.sharding import NamedSharding, PartitionSpec as P
    from vision_lang.runs.checkpoint import Checkpoints

    assert jax.device_count() == 8
    w = np.arange(16.0, dtype=np.float32).reshape(8, 2)
    step = jax.pmap(lambda s, x: s * 2, in_axes=(None, 0), out_axes=None, axis_name="i",
                    donate_argnums=0)
    mapped = step(w, np.arange(8))
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    sharded = jax.device_put(w * 2, NamedSharding(mesh, P("x")))
    with Checkpoints(sys.argv[1], keep=3) as checkpoints:
        checkpoints.save(1, {"w": mapped})
        step(mapped, np.arange(8))  # donated
        checkpoints.save(2, {"w": sharded})
        two = jax.make_mesh((2,), ("x",), axis_types=(jax.sharding.AxisType.Auto,),
                            devices=jax.devices()[:2])
        for spec in (P(), P("x")):
            target = jax.ShapeDtypeStruct((8, 2), jnp.float32, sharding=NamedSharding(two, spec))
            for step in (1, 2):
                _, back = checkpoints.restore({"w": target}, step=step)
                assert back["w"].sharding == target.sharding
                np.testing.assert_array_equal(back["w"], w * 2)
"""


def test_eight_devices_write_what_two_and_one_read(tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(DEVICES), str(tmp_path)], cwd=ROOT, check=True
    )
    wanted = 2 * jnp.arange(16.0).reshape(8, 2)
    with Checkpoints(tmp_path) as checkpoints:
        for target in (
            wanted * 0,
            np.zeros((8, 2), np.float32),
            jax.device_put(wanted, jax.devices()[0]),
        ):
            for step in (1, 2):
                restored = checkpoints.restore({"w": target}, step=step)[1]["w"]
                np.testing.assert_array_equal(restored, wanted)
                assert isinstance(restored, type(target))
    assert manifest.read(tmp_path / "1")["leaves"] == manifest.read(tmp_path / "2")["leaves"]
