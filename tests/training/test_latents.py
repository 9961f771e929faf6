"""Latents that are kept: the same draws and losses as from pictures, and never those of others."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import pickle
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow_datasets as tfds

from configs import diffusion as config_file
from tests.data.conftest import encode, write_tfds
from tests.tasks import parts
from vision_lang.data import pipeline, sources
from vision_lang.errors import InputError
from vision_lang.models.autoencoder import AUTOENCODERS
from vision_lang.runs import folder
from vision_lang.tasks import diffusion_config
from vision_lang.training import latents, parallel, setup

SIDE, PICTURES, BROKEN, ROWS = 16, 20, 7, 4


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Pictures with two captions each and a class; one of them is broken."""
    random = np.random.default_rng(0)
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(),
            "text": tfds.features.Sequence(tfds.features.Text()),
            "label": tfds.features.ClassLabel(names=["cat", "dog"]),
            "file_name": tfds.features.Text(),
        }
    )
    examples = [
        {
            "image": b"no picture" if n == BROKEN else encode(picture),
            "text": [f"one {n}", f"other {n}"],
            "label": n % 2,
            "file_name": f"{n}.png",
        }
        for n, picture in enumerate(random.integers(0, 256, (PICTURES, SIDE, SIDE, 3), np.uint8))
    ]
    splits = {"train": examples, "validation": examples[:3]}
    return write_tfds(tmp_path_factory.mktemp("data"), "pictures", features, splits)


@pytest.fixture
def config(prepared, tmp_path):
    config = config_file.get_config("tiny,autoencoder=tiny,data=pictures")
    config.data.update(
        path=str(prepared), dir=str(tmp_path / "data"), resolution=SIDE, flip=True,
        max_bad_share=0.2, cache_latents=True,
    )  # fmt: skip
    config.batch_size = ROWS
    return config


@pytest.fixture(scope="module")
def way():
    return parallel.make("jit", devices=jax.devices()[:1])


def echo(task):
    """The task with networks that answer at once."""
    return dataclasses.replace(
        task,
        text_encoder=SimpleNamespace(apply=lambda p, tokens, *_: (tokens[..., None] * 0.1, {})),
        unet=SimpleNamespace(apply=lambda p, x, time, context, *_: (0.3 * x + context.mean(), {})),
    )


class Squares:
    """An autoencoder that takes no time to compile: squares of two pixels a side."""

    spec = AUTOENCODERS["tiny"]

    def clone(self, dtype):
        return self

    def apply(self, variables, x, method):
        b, side, _, _ = x.shape
        x = x[..., :1].reshape(b, side // 2, 2, side // 2, 2).swapaxes(2, 3)
        x = x.reshape(b, side // 2, side // 2, 4) * variables["params"]["scale"]
        return {"mean": x, "logvar": x - 1}


def prepare(config, way, seed=0, net=None):
    """The task, its autoencoder, and the data with latents; net: None = one that can learn."""
    task = echo(diffusion_config.from_config(config, parts.facts(30, config.data.text_length)))
    if net is None:
        made = jax.jit(task.latents.init)(jax.random.key(seed))
    else:
        task = dataclasses.replace(task, latents=dataclasses.replace(task.latents, net=net))
        made = {"autoencoder": {"scale": jnp.float32(seed + 1)}}
    variables = {"params": {"unet": {}, "text_encoder": {}, **made}}
    data = sources.prepare(config.data)
    return task, variables, latents.prepare(data, config, task, variables, way)


def words(text, length):
    """A word is some number."""
    ids = np.zeros(length, np.int32)
    ids[: len(text.split())] = [1 + sum(map(ord, word)) % 29 for word in text.split()]
    return ids, ids > 0


def batches(config, source, step=0, workers=0):
    return pipeline.train_batches(
        source, functools.partial(words, length=config.data.text_length), data=config.data,
        batch_size=ROWS, seed=3, step=step, workers=workers,
    )  # fmt: skip


@pytest.mark.parametrize("where", ["", "label=1"])
def test_losses_are_those_of_pictures(config, way, where):
    """The same examples, captions, mirror images, draws and broken rows, step by step."""
    config.data.where = where
    task, variables, (data, _) = prepare(config, way, net=Squares() if where else None)

    @jax.jit
    def loss(batch, step):
        keys = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(step)))(batch["index"])
        batch = batch | {"progress": np.full(ROWS, 0.5, np.float32)}
        return task.loss(variables, batch, keys, across=parallel.ONE_DEVICE, train=True)[0]

    pictures, kept = (batches(config, s) for s in (data.open("train"), data.learned_from("train")))
    broken = 0
    for step, (a, b) in enumerate(itertools.islice(zip(pictures, kept, strict=True), 12)):
        assert set(b) == set(a) - {"image"} | {"latent_mean", "latent_logvar"}
        assert {n: (x.shape[1:], x.dtype) for n, x in b.items()} == {
            n: (s.shape, s.dtype) for n, s in task.batch_spec().items()
        }
        for name in set(a) & set(b):
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)
        used = a["weight"] > 0
        np.testing.assert_allclose(loss(b, step)[used], loss(a, step)[used], rtol=1e-4)
        broken += (~used).sum()
    assert broken and list(kept.bad) == list(pictures.bad)


def test_a_worker_and_a_later_step_have_the_same_batches(config, way):
    _, _, (data, _) = prepare(config, way, net=Squares())
    source = data.learned_from("train")
    first, later, elsewhere = (
        batches(config, source),
        batches(config, source, step=2),
        batches(config, pickle.loads(pickle.dumps(source)), step=2),
    )
    wanted = next(itertools.islice(first, 2, None))
    for found in (next(later), next(elsewhere)):
        jax.tree.map(np.testing.assert_array_equal, found, wanted)


def test_statistics_are_those_of_the_training_pictures(config, way):
    task, variables, (data, _) = prepare(config, way, net=Squares())
    source = data.open("train")
    places = [n for n in range(PICTURES) if source.name(n) != f"{BROKEN}.png"]
    read = [source[n]["image"] for n in places]
    images = np.stack([*read, *(picture[:, ::-1] for picture in read)])
    mean, logvar = task.latents.moments(variables, images / np.float32(127.5) - 1)
    mean, variance = (np.asarray(x, np.float64) for x in (mean, np.exp(logvar)))
    (file,) = (data._latents.data_path).glob("metadata.json")
    found = json.loads(file.read_text())["statistics"]
    assert found["count"] == PICTURES - 1
    np.testing.assert_allclose(found["mean"], mean.mean((0, 1, 2)), rtol=1e-4)
    deviation = np.sqrt(variance.mean((0, 1, 2)) + mean.var((0, 1, 2)))
    np.testing.assert_allclose(found["deviation"], deviation, rtol=1e-5)
    together = np.sqrt(variance.mean() + mean.var())
    assert found["scaling"] == pytest.approx(1 / together, rel=1e-5)


def test_they_are_made_once_and_never_taken_for_others(config, way, monkeypatch):
    _, _, (first, fingerprint) = prepare(config, way, net=Squares())
    again = config.copy_and_resolve_references()
    with monkeypatch.context() as patch:
        patch.setattr(latents, "_encoded", lambda *_: pytest.fail("encoded again"))
        again.data.where = "label=0"  # a choice of the same
        assert prepare(again, way, net=Squares())[2][1] == fingerprint
    assert first.fingerprint == f"{sources.prepare(config.data).fingerprint}+{fingerprint}"
    others = {prepare(config, way, seed=1, net=Squares())[2][1]}
    config.data.flip = False
    others.add(prepare(config, way, net=Squares())[2][1])
    config.data.resolution = SIDE // 2
    _, _, (smaller, other) = prepare(config, way, net=Squares())
    assert len(others | {other, fingerprint}) == 4
    shape = smaller.learned_from("validation")[0]["latents"].shape
    assert shape == (1, 2, SIDE // 4, SIDE // 4, 4)


def test_one_that_was_interrupted_is_made_anew(config, way, monkeypatch):
    with monkeypatch.context() as patch:

        def stopped(*_):
            yield [{"latents": None, "texts": (), "labels": (), "name": "x"}]
            raise KeyboardInterrupt

        patch.setattr(latents, "_encoded", stopped)
        with pytest.raises(KeyboardInterrupt):
            prepare(config, way, net=Squares())
    _, _, (data, _) = prepare(config, way, net=Squares())
    assert len(data.learned_from("train")) == PICTURES


def test_a_run_notes_them_and_keeps_to_its_autoencoder(config, way, tmp_path):
    task, variables, (_, fingerprint) = prepare(config, way, net=Squares())
    run = folder.create(str(tmp_path / "run"), "diffusion")
    data, _ = setup.prepare_data(config, run)
    for seed in (0, 1):
        made = {"autoencoder": {"scale": jnp.float32(seed + 1)}}
        state = SimpleNamespace(variables=lambda made=made: {"params": made})
        if seed:
            with pytest.raises(InputError, match="autoencoder 'RUN' has changed"):
                config.init.autoencoder = "RUN"
                setup._with_latents(data, config, task, state, way, run)
        else:
            setup._with_latents(data, config, task, state, way, run)
            assert json.loads(run.data.read_text())["latents"] == fingerprint
            setup.check_data(sources.prepare(config.data), run)  # the pictures are still these


@pytest.mark.parametrize(
    ("argument", "changes", "message"),
    [
        ("tiny", {}, "autoencoder=small"),
        ("tiny,autoencoder=tiny", {"data__crop": "random_resized_crop"}, "other pictures in each"),
        ("tiny,autoencoder=tiny", {"optimizer__frozen": ()}, "autoencoder/.* is not frozen"),
    ],
)
def test_what_cannot_be_kept_is_refused(argument, changes, message):
    config = config_file.get_config(argument)
    config.data.cache_latents = True
    parts.change(config, **changes)
    with pytest.raises(InputError, match=message):
        diffusion_config.from_config(config, parts.facts(30, config.data.text_length))
