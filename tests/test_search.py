"""Features of texts, and searching: extract and search on networks that were not trained."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import Image

from configs import contrastive, diffusion
from tests.tasks import parts
from vision_lang import extract, run_features, search
from vision_lang.data import tokenizer
from vision_lang.errors import InputError
from vision_lang.metrics.frechet import __main__ as frechet
from vision_lang.models.sketch import Sketch, SketchSpec
from vision_lang.shapes import splits
from vision_lang.shapes.draw import draw
from vision_lang.training import setup

TEXTS = ["a red circle", "two objects", "a blue square on grey", "a red circle", "ünïcode"]
LONG = "a circle " * 40
FILE = "\ufeff" + "\n".join([TEXTS[0], *TEXTS[1:3], "  ", LONG, TEXTS[3] + "\r", TEXTS[4], ""])
GOOD = [f"pictures/{i}.png" for i in range(5)]


def untrained(name, config, init):
    """A run before its first step; init: task -> variables."""
    words = tokenizer.train(TEXTS, 300)
    task = setup.make_task(config, words, 0)
    run = SimpleNamespace(root=name)
    return setup.Loaded(run, config, task, words, [], init(task), name, False)


@pytest.fixture(scope="module")
def matcher():
    return untrained("match", contrastive.get_config("tiny"), parts.init)


@pytest.fixture(scope="module")
def drawer():
    """Of diffusion, with a text encoder only."""

    def init(task):
        null = task.conditioning.null(1)
        made = jax.jit(task.text_encoder.init)(jax.random.key(0), null.tokens)
        return {"params": {"text_encoder": made["params"]}}

    return untrained("draw", diffusion.get_config("tiny"), init)


@pytest.fixture
def folder(tmp_path, monkeypatch, matcher, drawer):
    """The working directory, with pictures and texts; the runs match, draw, and other weights."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    for name, i in zip(GOOD, range(5), strict=True):
        Image.fromarray(draw(splits.sample(0, "test", i), 32)).save(tmp_path / name)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    (tmp_path / "texts.txt").write_bytes(FILE.encode())
    other = jax.tree.map(lambda x: x + 1, matcher.variables)
    runs = {"match": matcher, "draw": drawer}
    runs["other"] = dataclasses.replace(matcher, variables=other)
    monkeypatch.setattr(setup, "load", lambda path, weights: runs[path])
    return tmp_path


def encoded(loaded, texts):
    return loaded.tokenizer.encode_batch(texts, loaded.config.data.text_length)


def images(names):
    return np.stack([np.asarray(Image.open(name)) for name in names])


def test_texts_become_their_joint_embedding_in_shards(matcher, folder, command):
    arguments = ("--run=match", "--texts=texts.txt", "--out=t.npz", "--shard_size=2")
    outcome = command(extract.main, *arguments)
    assert outcome.code == 1 and "2 of 7 texts could not be read" in outcome.err
    assert "texts.txt:4: there is no text" in outcome.err
    room = matcher.config.data.text_length - 2
    assert "texts.txt:5: The text 'a circle" in outcome.err and f"room for {room}" in outcome.err
    shards = [np.load(path) for path in sorted(folder.glob("t-*.npz"))]
    assert [shard["names"].tolist() for shard in shards] == [TEXTS[:2], TEXTS[2:4], TEXTS[4:]]
    found = np.concatenate([shard["features"] for shard in shards])
    wanted = matcher.task.embed_texts(matcher.variables, *encoded(matcher, TEXTS))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)
    assert "exists" in command(extract.main, *arguments).sentence
    assert command(extract.main, *arguments, "--overwrite").code == 1
    same = command(frechet.main, "--a=t-*.npz", "--b=t-*.npz", "--metrics=fd", "--allow_few")
    assert "fd_text_embedding" in json.loads(same.out)


def test_texts_token_by_token_or_their_mean(drawer, folder, command):
    """Of a diffusion run: what its U-Net looks at."""
    (folder / "good.txt").write_text("\n".join(TEXTS[:3]))
    arguments = ("--run=draw", "--texts=good.txt")
    assert command(extract.main, *arguments, "--out=a.npz", "--spatial").code == 0
    assert command(extract.main, *arguments, "--out=b.npz").code == 0
    tokens, mask = encoded(drawer, TEXTS[:3])
    task = dataclasses.replace(drawer.task, sketch=Sketch(SketchSpec(layers=0), 32))
    condition = task.make_condition(tokens, mask, np.full(3, -1))
    wanted = np.asarray(task.encode(drawer.variables, condition).context)
    with np.load("a.npz") as found:
        np.testing.assert_allclose(found["features"], wanted, rtol=1e-4, atol=1e-5)
        assert (found["mask"] == mask).all() and str(found["network"]) == "text_states"
    means = [states[own].mean(0) for states, own in zip(wanted, mask, strict=True)]
    with np.load("b.npz") as found:
        np.testing.assert_allclose(found["features"], means, rtol=1e-4, atol=1e-5)
        assert found["names"].tolist() == TEXTS[:3] and "mask" not in found


def test_texts_and_pictures_find_pictures_and_texts(matcher, folder, command):
    out = ("--out=p.npz", "--shard_size=2")
    assert command(extract.main, "--run=match", "--images=pictures", *out).code == 0
    assert command(extract.main, "--run=match", "--texts=texts.txt", "--out=t.npz").code == 1
    of_images = np.asarray(jax.jit(matcher.task.embed_images)(matcher.variables, images(GOOD)))
    tokens = encoded(matcher, TEXTS)
    of_texts = np.asarray(matcher.task.embed_texts(matcher.variables, *tokens))
    queries = [TEXTS[2], GOOD[3], TEXTS[1]]
    vectors = np.stack([of_texts[2], of_images[3], of_texts[1]])
    for features, names, rows in (("p-*.npz", GOOD, of_images), ("t.npz", TEXTS, of_texts)):
        arguments = ["--run=match", f"--features={features}", *[f"--query={q}" for q in queries]]
        every = command(search.main, *arguments, "-k", "99")
        assert every.code == 0, every.err
        lines = [json.loads(line) for line in every.out.splitlines()]
        assert [line["query"] for line in lines] == [q for q in queries for _ in names]
        assert [line["rank"] for line in lines] == [1, 2, 3, 4, 5] * 3
        for block, cosines in zip(
            (lines[:5], lines[5:10], lines[10:]), vectors @ rows.T, strict=True
        ):
            found = [line["similarity"] for line in block]
            np.testing.assert_allclose(found, np.sort(cosines)[::-1], atol=2e-5)
            own = dict(zip(names, cosines, strict=True))
            np.testing.assert_allclose(found, [own[line["name"]] for line in block], atol=2e-5)
        best = command(search.main, *arguments, "-k", "2").out.splitlines()
        assert [json.loads(line) for line in best] == [r for r in lines if r["rank"] < 3]
    alone = command(search.main, "--run=match", "--features=p-*.npz", f"--query={GOOD[3]}").out
    assert json.loads(alone.splitlines()[0]) | {"similarity": 1.0} == {
        "query": GOOD[3], "rank": 1, "name": GOOD[3], "similarity": 1.0,
    }  # fmt: skip


def test_what_cannot_be_compared_is_one_sentence(folder, command):
    extracted = ("--run=match", "--images=pictures")
    assert command(extract.main, *extracted, "--out=p.npz").code == 0
    assert command(extract.main, *extracted, "--out=c.npz", "--layer=conv2_1").code == 0
    np.savez("foreign.npz", features=np.ones((2, 3)))
    cases = [
        ("--run=other", "--features=p.npz", "--query=a cat", "their network_hash is"),
        ("--run=match", "--features=c.npz", "--query=a cat", "'conv2_1' of pictures"),
        ("--run=match", "--features=p.npz", "--query=broken.png", "--query=broken.png: "),
        ("--run=match", "--features=p.npz", f"--query={LONG}", "room for"),
        ("--run=match", "--features=p.npz", "--query=missing.PNG", "there is no such picture"),
        ("--run=match", "--features=p.npz", "--query=", "there is no text"),
        ("--run=match", "--features=foreign.npz", "--query=a cat", "'unknown' are none"),
        ("--run=match", "--features=none.npz", "--query=a cat", "no file 'none.npz'"),
        ("--run=match", "--features=p.npz", "for what"),
    ]
    for *arguments, message in cases:
        assert message in command(search.main, *arguments).sentence
    same = command(search.main, "--run=match", "--features=c.npz", f"--query={GOOD[0]}", "-k", "1")
    assert json.loads(same.out)["name"] == GOOD[0]  # a picture finds pictures by any layer


def test_a_run_gives_no_features_of_what_it_does_not_take(folder, command):
    refused = command(extract.main, "--run=draw", "--images=pictures").sentence
    assert "'draw' is a diffusion run: it has no features of pictures" in refused


def test_files_without_texts_are_one_sentence(folder, command):
    (folder / "blank.txt").write_text(" \n\n")
    (folder / "latin.txt").write_bytes("a cat\nün\n".encode("latin-1"))
    cases = {
        "nowhere.txt": "'nowhere.txt' cannot be read",
        "blank.txt": "no text in 'blank.txt'",
        "latin.txt": "Line 2 of 'latin.txt'",
    }
    for name, message in cases.items():
        assert message in command(extract.main, "--run=match", f"--texts={name}").sentence
    both = command(extract.main, "--run=match", "--texts=texts.txt", "--images=pictures")
    assert "either --images or --texts" in both.sentence


def test_the_layer_that_nobody_names():
    """The embedding, or what is computed last before the logits: not the last by name."""

    def chosen(names, spatial=False, layer=""):
        task = SimpleNamespace(
            batch_spec=lambda: {"image": jax.ShapeDtypeStruct((2, 2, 3), np.uint8)},
            layers=lambda variables, images: {
                name: images[:, 0, 0] if name in ("fc7", "pooled") else images for name in names
            },
        )
        loaded = SimpleNamespace(
            task=task, variables={}, config=SimpleNamespace(task="recognition")
        )
        return run_features.layer_of(loaded, "pictures", layer, spatial)

    assert chosen(["pool5", "fc7", "logits"]) == "fc7"
    assert chosen(["pool5", "logits", "embedding"]) == "embedding"
    assert chosen(["pool5", "logits", "embedding"], spatial=True) == "pool5"
    assert chosen(["hidden_1", "pooled"]) == "pooled"
    assert chosen(["hidden_1", "pooled"], spatial=True) == "hidden_1"
    with pytest.raises(InputError, match="'fc7'"):
        chosen(["pool5", "fc7"], layer="fc8")
