"""The step against a twin in NumPy, and what it does with bad batches, averages and groups."""

from __future__ import annotations

import math
import re
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from tests.training import line
from vision_lang.errors import InputError
from vision_lang.training import optimizer, parallel
from vision_lang.training.inflight import InFlight
from vision_lang.training.state import split


def assert_same(a, b):
    """Two trees agree bit for bit."""
    jax.tree.map(np.testing.assert_array_equal, line.host(a), line.host(b))


class Twin:
    """The training of a line in float64: weighted mean gradient, clipping by the global norm,
    AdamW with decay of the kernel alone, an average with a slow start."""

    def __init__(self, config, kernel, bias) -> None:
        self.c, self.updates, self.step = config, 0, 0
        self.p = np.array([*kernel, bias], np.float64)
        self.m, self.v, self.ema = np.zeros_like(self.p), np.zeros_like(self.p), self.p.copy()

    def gradient(self, batch):
        x = np.concatenate([batch["x"], np.ones((line.ROWS, 1))], axis=1)
        error = x @ self.p + line.noise(self.c.seed, self.step) - batch["y"]
        error += self.step / self.c.steps
        share = batch["weight"] / batch["weight"].sum()
        self.loss = (share * 0.5 * error**2).sum()
        return (share * error) @ x

    def __call__(self, batch) -> None:
        c, g = self.c.optimizer, self.gradient(batch)
        self.step += 1
        if not np.isfinite(g).all():
            return
        g = g * min(1.0, c.clip_norm / np.linalg.norm(g))
        rate = optimizer.learning_rate(c, self.c.steps)(self.updates)
        n, self.updates = self.updates, self.updates + 1
        self.m = c.b1 * self.m + (1 - c.b1) * g
        self.v = c.b2 * self.v + (1 - c.b2) * g**2
        m, v = self.m / (1 - c.b1 ** (n + 1)), self.v / (1 - c.b2 ** (n + 1))
        decay = np.array([c.groups.matrices.weight_decay] * line.WIDTH + [0.0])
        self.p = self.p - rate * (m / (np.sqrt(v) + c.eps) + decay * self.p)
        decay = min(self.c.ema.ema.decay, (1 + n) / (10 + n))
        self.ema = decay * self.ema + (1 - decay) * self.p


def kernel_and_bias(params):
    return np.array([*params["line/kernel"], params["line/bias"]])


@pytest.mark.parametrize(("accumulate", "way"), [(1, "pmap"), (1, "jit"), (4, "pmap")])
def test_training_is_what_numpy_computes(accumulate, way):
    config = line.config(
        accumulate=accumulate, parallel=way, optimizer__groups__matrices__weight_decay=0.3,
        ema__ema__decay=0.6,
    )  # fmt: skip
    trainer = line.Trainer(line.Line(), config)
    twin = Twin(config, *(line.host(trainer.state.params)[f"line/{n}"] for n in ("kernel", "bias")))
    total = 0.0
    for step in range(20):
        batch = line.batch(step)
        if step == 7:
            batch["x"][3, 0] = np.nan
        assert trainer(batch) == (step == 7)
        twin(batch)
        np.testing.assert_allclose(
            kernel_and_bias(trainer.state.params), twin.p, rtol=2e-5, atol=2e-6
        )
        average = kernel_and_bias(trainer.state.ema["ema"].params)
        np.testing.assert_allclose(average, twin.ema, rtol=2e-5, atol=2e-6)
        if step != 7:
            total += twin.loss * batch["weight"].sum()
    window = line.host(trainer.state.window)
    counts = sum(line.batch(s)["weight"].sum() for s in range(20) if s != 7)
    assert window["loss"][1] == counts and window["error"][1] == counts
    np.testing.assert_allclose(window["loss"][0], total, rtol=1e-5)
    assert (
        int(trainer.state.step) == 20 and int(trainer.state.ema["ema"].count) == twin.updates == 19
    )


def test_a_row_of_weight_0_changes_nothing():
    trainers = [line.Trainer(line.Line(), line.config()) for _ in range(2)]
    for step in range(3):
        batches = [line.batch(step), line.batch(step)]
        batches[1]["x"][2], batches[1]["y"][2] = 1e3, -1e3
        for trainer, batch in zip(trainers, batches, strict=True):
            trainer(batch)
    assert_same(trainers[0].state, trainers[1].state)


def test_a_batch_without_weight_is_no_step_to_nan():
    trainer = line.Trainer(line.Line(), line.config(optimizer__groups__matrices__weight_decay=0.0))
    before = line.host(trainer.state.params)
    assert trainer(line.batch(0) | {"weight": np.zeros(line.ROWS, np.float32)}) == 0
    assert_same(before, trainer.state.params)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_bad_batch_is_skipped_whole(value):
    trainer = line.Trainer(line.Line(), line.config())
    for step in range(5):
        trainer(line.batch(step))
    before = line.host(trainer.state)
    bad = line.batch(5)
    bad["y"][1] = value
    assert [trainer(bad), trainer(bad)] == [1, 2]
    after = line.host(trainer.state)
    assert int(after.step) == int(before.step) + 2
    assert_same(before, after.replace(step=before.step, bad_steps=before.bad_steps))
    assert trainer(line.batch(6)) == 0
    assert not np.array_equal(before.params["line/kernel"], trainer.state.params["line/kernel"])


def test_training_stops_with_a_sentence_after_too_many_bad_steps():
    class Saved:
        saving = True

        def wait(self):
            self.saving = False

        def latest(self):
            return 20 if self.saving else 40

    names = lambda step: [f"{step}-{n}.png" for n in range(7)]  # noqa: E731
    flying = InFlight(1, 2, Saved(), names, {"skipped_steps": 10})
    for step, bad in enumerate((0, 1, 2, 0, 1, 2), start=1):
        flying.add(step, np.int32(bad))
    flying.add(7, np.int32(3))
    with pytest.raises(InputError, match=r"Step 7: NaN or Inf.* 3 update.*checkpoint is step 40"):
        flying.drain()
    assert flying.skipped == 15 and flying.notes() == {"skipped_steps": 15}
    flying = InFlight(2, 0, SimpleNamespace(wait=lambda: None, latest=lambda: None), names, {})
    with pytest.raises(InputError, match="NaN.*there is none"):
        flying.add(1, np.int32(1))


def test_the_average_shares_no_memory_with_the_parameters():
    trainer = line.Trainer(line.Line(), line.config())
    for step in range(3):  # the state is donated each time
        average = trainer.state.ema["ema"].params
        places = [
            x.unsafe_buffer_pointer() for x in jax.tree.leaves([trainer.state.params, average])
        ]
        assert len(set(places)) == len(places)
        old = trainer.state.params["line/kernel"]
        trainer(line.batch(step))
        assert old.is_deleted()


def test_frozen_parameters_stay_and_are_used():
    config = line.config(optimizer__frozen=(".*/kernel",))
    trainer = line.Trainer(line.Line(), config)
    assert set(trainer.state.params) == {"line/bias"} == set(trainer.state.ema["ema"].params)
    frozen, bias = line.host(trainer.state.frozen), line.host(trainer.state.params)
    for step in range(5):
        trainer(line.batch(step))
    assert_same(frozen, trainer.state.frozen)
    assert bias["line/bias"] != trainer.state.params["line/bias"]
    assert set(trainer.state.variables("ema")["params"]["line"]) == {"kernel", "bias"}


def test_frozen_patterns_match_the_whole_path():
    variables = {"params": {"a": {"bias": 1, "bias_2": 2}}, "stats": 3}
    assert split(variables, ("a/bias",)) == ({"a/bias_2": 2}, {"a/bias": 1}, {"stats": 3})


@pytest.mark.parametrize(
    ("frozen", "part"),
    [
        (("a/bias", "a/kernel"), "'a/kernel' matches no parameter"),
        (("bias",), "whole path, as 'a/bias'"),
        (("a/.*",), "nothing is left"),
    ],
)
def test_freezing_nothing_or_everything_is_refused(frozen, part):
    with pytest.raises(InputError, match=part):
        split({"params": {"a": {"bias": 1, "bias_2": 2}}}, frozen)


@pytest.mark.parametrize(
    ("patterns", "where"),
    [({"a": ".*/kernel"}, "no group"), ({"a": ".*", "b": ".*/bias"}, "groups a, b")],
)
def test_a_parameter_in_no_group_or_in_two_is_refused(patterns, where):
    groups = ConfigDict({name: {"pattern": pattern} for name, pattern in patterns.items()})
    with pytest.raises(InputError, match=re.escape(f"'net/bias' is in {where} of config")):
        optimizer.group_of(["net/kernel", "net/bias"], groups)
    with pytest.raises(InputError, match="'line/bias' is in no group"):
        line.Trainer(line.Line(), line.config(optimizer__groups__others__pattern="none"))


def test_packing_and_back():
    rng = np.random.default_rng(0)
    shapes = {"b/kernel": (2, 3), "a/kernel": (4,), "a/bias": (), "c/scale": (5,)}
    params = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    groups = ConfigDict(
        {
            "matrices": {"pattern": ".*/kernel"},
            "others": {"pattern": ".*/(bias|scale)"},
            "unused": {"pattern": ".*/embedding"},
        }
    )
    packing = optimizer.Packing(params, groups)
    vectors = packing.pack(params)
    assert {group: vector.shape for group, vector in vectors.items()} == {
        "matrices": (10,), "others": (6,)
    }  # fmt: skip
    assert set(np.asarray(vectors["others"])) == {*params["c/scale"], params["a/bias"].item()}
    back = packing.unpack(vectors)
    assert set(back) == set(params)
    for name, value in params.items():
        np.testing.assert_array_equal(back[name], value)
        assert back[name].shape == value.shape


def test_muon_takes_the_orthogonal_part_of_each_matrix():
    """With its singular values between 0.6 and 1.3 times 0.2 sqrt(longer side); of a kernel that
    holds several matrices, whatever the sizes of their gradients, of each."""
    rng = np.random.default_rng(0)
    shapes = {"a": (6, 4), "b": (3, 2, 2, 5), "c": (4, 6), "d": (12, 5)}
    gradients = {n: rng.standard_normal(s, np.float32) for n, s in shapes.items()}
    pieces = {"e": (5, 12), "f": (6, 9)}  # of three matrices each
    for name, shape in pieces.items():
        sizes = np.repeat(np.float32([1, 1e-3, 10]), shape[1] // 3)
        gradients[name] = rng.standard_normal(shape, np.float32) * sizes
    muon = {"rule": "muon", "weight_decay": 0.5, "learning_rate_scale": 2.0}
    groups = ConfigDict(
        {
            "g": {"pattern": "[a-d]", "parts": 1} | muon,
            "of_three": {"pattern": "[ef]", "parts": 3} | muon,
        }
    )
    config = ConfigDict(
        {"learning_rate": 0.1, "schedule": "constant", "warmup": 0, "clip_norm": 0.0}
        | {"momentum": 0.9, "groups": groups}
    )
    packing = optimizer.Packing(gradients, groups)
    transform = optimizer.make(config, 10, packing)
    ones = packing.pack(jax.tree.map(np.ones_like, gradients))
    # warmup=0 still warms up for one step, whose rate is 0
    state, alone = transform.init(ones), {"across": parallel.ONE_DEVICE}
    _, state = transform.update(packing.pack(gradients), state, ones, **alone)
    updates, _ = transform.update(packing.pack(gradients), state, ones, **alone)
    for name, update in packing.unpack(updates).items():
        parts = 3 if name in pieces else 1
        kernel = gradients[name].reshape(-1, gradients[name].shape[-1]).astype(np.float64)
        directions = -(np.asarray(update) / 0.2 + 0.5).reshape(kernel.shape)
        for matrix, direction in zip(
            np.split(kernel, parts, axis=1), np.split(directions, parts, axis=1), strict=True
        ):
            u, _, v = np.linalg.svd(matrix, full_matrices=False)
            inside = u.T @ direction @ v.T / (0.2 * math.sqrt(max(matrix.shape)))
            np.testing.assert_allclose(inside, np.diag(np.diag(inside)), atol=1e-3)
            assert np.diag(inside).min() > 0.6 and np.diag(inside).max() < 1.3
    with pytest.raises(InputError, match="muon is for matrices"):
        optimizer.make(config, 10, optimizer.Packing({"a": jax.numpy.ones(3)}, groups))
    with pytest.raises(InputError, match="parts=3"):
        optimizer.make(config, 10, optimizer.Packing({"e": jax.numpy.ones((3, 4))}, groups))


def test_learning_rates():
    fields = dict(learning_rate=0.2, warmup=10)
    cosine = optimizer.learning_rate(ConfigDict(fields | {"schedule": "cosine"}), 110)
    for step, share in {0: 0, 5: 0.5, 10: 1, 35: (1 + math.sqrt(0.5)) / 2, 60: 0.5, 110: 0}.items():
        assert float(cosine(step)) == pytest.approx(0.2 * share, abs=1e-7)
    linear = optimizer.learning_rate(ConfigDict(fields | {"schedule": "linear"}), 110)
    for step, share in {0: 0, 5: 0.5, 10: 1, 35: 0.75, 60: 0.5, 110: 0, 120: 0}.items():
        assert float(linear(step)) == pytest.approx(0.2 * share, abs=1e-7)
    constant = optimizer.learning_rate(ConfigDict(fields | {"schedule": "constant"}), 110)
    for step, share in {0: 0, 5: 0.5, 10: 1, 11: 1, 10_000: 1}.items():
        assert float(constant(step)) == pytest.approx(0.2 * share, abs=1e-7)
    with pytest.raises(InputError, match="cosin'.*mean 'cosine'"):
        optimizer.learning_rate(ConfigDict(fields | {"schedule": "cosin"}), 110)


def test_a_batch_that_cannot_be_split_is_refused():
    with pytest.raises(InputError, match="batch_size=10.*1 device.*accumulate=4.*multiple of 4"):
        parallel.make("pmap", 10, 4, devices=jax.local_devices()[:1])
    with pytest.raises(InputError, match="'pmpa'.*mean 'pmap'"):
        parallel.make("pmpa")
