"""The autoencoder's task: each part of its loss by hand, who learns by it, whose noise it is."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import autoencoder as config_file
from configs import recognition
from tests.tasks import parts
from vision_lang import keys as random_keys
from vision_lang.errors import InputError
from vision_lang.tasks import autoencoder, autoencoder_config, recognition_config
from vision_lang.training import parallel, setup

ROWS, SIDE = 4, 32
FACTS = parts.facts(5, 3)


def make(argument="tiny,perceptual", **changes):
    """A tiny task; see `parts.change`."""
    config = config_file.get_config(argument)
    parts.change(config, **changes)
    return autoencoder_config.from_config(config, FACTS)


def batch():
    return parts.batch(SIDE, labels=range(ROWS))


def train(task, variables, rows, keys):
    return task.loss(variables, rows, keys, across=parallel.ONE_DEVICE, train=True)


def units(task, variables, images):
    """The layers that are compared, as vectors of length 1, in float64."""
    own = {name: tree["perceptual"] for name, tree in variables.items()}
    _, found = task.perceptual.net.apply(own, images, train=False)
    maps = [np.asarray(found[name], np.float64) for name in task.perceptual.layers]
    return [m / np.maximum(np.linalg.norm(m, axis=-1, keepdims=True), 1e-5) for m in maps]


@pytest.mark.parametrize(("name", "error"), [("absolute", np.abs), ("squared", np.square)])
def test_the_loss_is_the_sum_of_its_parts(name, error):
    """With the divisor of each: numbers of a picture, nothing, numbers of a picture."""
    task = make(error=name, kl_weight=0.1, perceptual_weight=2.0)
    variables, data = parts.init(task), batch()
    data["weight"][1] = 0
    drawn = random_keys.named(parts.keys(ROWS), "latents")
    noise = np.stack([jax.random.normal(key, (16, 16, 4)) for key in drawn])
    x = data["image"] / np.float32(127.5) - 1
    own = {"params": variables["params"]["autoencoder"]}
    found = jax.device_get(task.net.apply(own, x, noise))
    y, mean, logvar = (found[n].astype(np.float64) for n in ("sample", "mean", "logvar"))
    pairs = zip(units(task, variables, x), units(task, variables, y), strict=True)
    wanted = {
        "reconstruction": error(x - y).mean((1, 2, 3)),
        "kl": ((mean**2 + np.exp(logvar) - 1 - logvar) / 2).sum((1, 2, 3)),
        "perceptual": sum(((a - b) ** 2).sum(-1).mean((1, 2)) for a, b in pairs),
        "psnr_drawn": 10 * np.log10(4 / ((x - y.clip(-1, 1)) ** 2).mean((1, 2, 3))),
    }
    losses, mutable, metrics = parts.loss(task, variables, data)
    assert mutable == {} and set(metrics) == set(wanted)
    for part, each in wanted.items():
        total, count = metrics[part]
        assert count == ROWS - 1, part
        np.testing.assert_allclose(total, each[[0, 2, 3]].sum(), rtol=1e-4, err_msg=part)
    total = wanted["reconstruction"] + 0.1 * wanted["kl"] / (SIDE * SIDE * 3)
    np.testing.assert_allclose(losses, total + 2 * wanted["perceptual"], rtol=1e-4)


def test_the_divergence_is_the_integral():
    """Of q log(q / p) over a fine grid, where latents are independent."""
    random = np.random.default_rng(0)
    mean, logvar = random.normal(size=(2, 3, 1, 1, 2))
    z = np.linspace(-15, 15, 20_001)
    log_q = -((z - mean[..., None]) ** 2) / (2 * np.exp(logvar[..., None])) - logvar[..., None] / 2
    q = np.exp(log_q) / np.sqrt(2 * np.pi)
    wanted = (q * (log_q + z**2 / 2)).sum(-1) * (z[1] - z[0])
    found = autoencoder.divergence({"mean": jnp.asarray(mean), "logvar": jnp.asarray(logvar)})
    np.testing.assert_allclose(found, wanted.sum((1, 2, 3)), rtol=1e-5)


def test_a_perfect_autoencoder_loses_nothing():
    task = make()
    variables, normal = parts.init(task), jnp.zeros((ROWS, 16, 16, 4))
    perfect = lambda own, x, noise: {"sample": x, "mean": normal, "logvar": normal}  # noqa: E731
    task = dataclasses.replace(task, net=SimpleNamespace(spec=task.net.spec, apply=perfect))
    losses, _, metrics = parts.loss(task, variables, batch())
    assert not np.any(losses)
    assert metrics["psnr_drawn"][0] == pytest.approx(ROWS * autoencoder.BEST_PSNR)


def test_the_perceptual_network_teaches_and_learns_nothing():
    """Also where it is the only one to teach; its statistics are handed on as they are."""
    task = make()
    variables, data = parts.init(task), batch()
    alone = dataclasses.replace(task, error=jnp.zeros_like, kl_weight=0.0)

    def gradient(variables):
        total = lambda v: parts.loss(alone, v, data, train=True)[0].sum()  # noqa: E731
        return jax.device_get(jax.grad(total)(variables))

    found = gradient(variables)
    assert not any(np.any(g) for g in jax.tree.leaves(found["params"]["perceptual"]))
    assert not any(np.any(g) for g in jax.tree.leaves(found["batch_stats"]))
    assert all(np.any(g) for g in jax.tree.leaves(found["params"]["autoencoder"]))
    black = jax.tree.map(np.zeros_like, data) | {"weight": data["weight"]}
    _, mutable, _ = parts.loss(task, variables, black, train=True)  # and nothing is undefined there
    assert set(mutable) == {"batch_stats"}
    jax.tree.map(np.testing.assert_array_equal, mutable["batch_stats"], variables["batch_stats"])
    data = black
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradient(variables)))


def test_noise_is_the_example_s_own():
    task = make("tiny")
    variables, data, keys = parts.init(task), batch(), parts.keys(ROWS)
    run = jax.jit(lambda rows, keys: train(task, variables, rows, keys)[0])
    losses = run(data, keys)
    backwards = run(jax.tree.map(lambda x: x[::-1], data), keys[::-1])
    np.testing.assert_allclose(backwards[::-1], losses, rtol=1e-5)
    same = jax.tree.map(lambda x: np.repeat(x[:1], ROWS, 0), data)
    assert len(set(np.asarray(run(same, keys)).tolist())) == ROWS


def test_pictures_come_back_by_the_means_of_their_latents():
    task = make("tiny")
    variables, images = parts.init(task), batch()["image"]
    own = {"params": variables["params"]["autoencoder"]}
    found = task.net.apply(own, task.encode(variables, images)["mean"], method="decode")
    wanted = np.clip(np.round((np.asarray(found) + 1) * 127.5), 0, 255)
    back = task.reconstruct(variables, images)
    assert back.dtype == np.uint8 and np.abs(wanted - back).max() <= 1  # rounded elsewhere


@pytest.mark.slow
def test_a_recogniser_s_encoder_becomes_the_perceptual_network(monkeypatch):
    """As the two configs are, without its head."""
    facts = parts.facts(5, 3, classes=3)
    there = recognition_config.from_config(recognition.get_config("tiny"), facts)
    there = parts.init(there, seed=1)
    flat = {"/".join(k.key for k in path): x for path, x in jax.tree.leaves_with_path(there)}
    monkeypatch.setattr(setup, "weights_of", lambda spec: (spec, flat))
    config = config_file.get_config("tiny,perceptual")
    config.init.perceptual = "RUN"
    task = autoencoder_config.from_config(config, FACTS)
    _, state = setup.start(config, task)
    found = state.variables()
    for name in ("params", "batch_stats"):
        wanted = {k: v for k, v in there[name]["encoder"].items() if k != "logits"}
        jax.tree.map(np.testing.assert_array_equal, found[name]["perceptual"], wanted)
    assert all(path.startswith("autoencoder/") for path in state.params)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"error": "absolut"}, "'absolute'"),
        ({"optimizer__frozen": ("perceptual/conv1.*",)}, "perceptual/conv2_1.* is not frozen"),
        ({"argument": "tiny", "init__perceptual": "RUN"}, "perceptual_weight above 0"),
        ({"model__perceptual__layers": ("conv3_1",)}, "Did you mean 'conv2_1'|Known"),
        ({"model__perceptual__layers": ()}, "compares nothing"),
        ({"model__perceptual__preprocessing": "kears"}, "'keras'"),
        ({"model__perceptual__stages": ((4,),) * 6}, "makes nothing of pictures of 32"),
        ({"model__autoencoder__groups": 3}, "no multiple of its groups=3"),
        ({"model__autoencoder__widths": (8,) * 7}, "data.resolution=32"),
        ({"model__autoencoder__widths": ()}, "at least one"),
        ({"model__dtype": "float16"}, "dtype"),
    ],
)
def test_wrong_configs_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        make(**changes)
