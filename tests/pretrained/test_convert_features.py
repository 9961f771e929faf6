"""Run folders of networks that only give features: CLIP's vision tower, and FID's Inception."""

from __future__ import annotations

import json
import pathlib

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from tests.models.test_inception import made
from tests.pretrained import references
from vision_lang import convert, evaluate, extract, main, pretrained, recognize, search
from vision_lang.evaluators import features
from vision_lang.metrics.frechet import __main__ as frechet
from vision_lang.models import inception
from vision_lang.models.inception import LAYERS, Inception
from vision_lang.pretrained import inception as published
from vision_lang.pretrained import layout
from vision_lang.runs import config as config_lib
from vision_lang.runs.converted import KINDS
from vision_lang.tasks import features_config
from vision_lang.training import setup

REFERENCES = pathlib.Path(__file__).parents[1] / "fixtures" / "references"
CLIP = REFERENCES / "clip_folder"
SIZES = [(40, 33), (7, 61), (40, 33)]  # height and width of pictures
FID = inception.PUBLISHED_SHA256 + "0" * 56


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """Files 0.png, ... of SIZES in the current folder; returns what is in them."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    found = [random.integers(0, 256, (*size, 3), np.uint8) for size in SIZES]
    for i, picture in enumerate(found):
        Image.fromarray(picture).save(f"{i}.png")
    return found


@pytest.fixture
def narrow(monkeypatch):
    """FID's network with an eighth of its channels and one block of a kind, and its weights."""
    network, left_out = Inception(width=1 / 8), ("5c", "5d", "6b", "6c", "6d", "7b")
    few = {name: layer for name, layer in LAYERS.items() if not name.endswith(left_out)}
    monkeypatch.setattr(inception, "LAYERS", few)
    for module in (published, features_config):
        monkeypatch.setattr(module, "Inception", lambda: network)
    return published.PublishedInception(network), made(network, np.zeros((1, 9, 9, 3)))


def converted(command, narrow, run, sha256):
    """Makes a run of the narrow network's weights, which came from a file of that sha256."""
    model, variables = narrow
    save_file(layout.write(variables, model.rows()), "w.safetensors", {"source_sha256": sha256})
    outcome = command(convert.main, "--kind=inception_fid", "--path=w.safetensors", f"--run={run}")
    assert outcome.code == 0, outcome.err


def extracted(command, run, *arguments):
    names = [f"--images={i}.png" for i in range(len(SIZES))]
    outcome = command(extract.main, f"--run={run}", *names, "--out=x.npz", *arguments)
    assert outcome.code == 0, outcome.err
    with np.load("x.npz") as archive:
        return {name: archive[name] for name in archive}


def test_pictures_reach_inception_at_their_own_size(command, pictures, narrow):
    converted(command, narrow, "run", FID)
    found = extracted(command, "run")
    model, variables = narrow
    apply = jax.jit(model.apply)
    for row, picture in zip(found["features"], pictures, strict=True):
        expected = np.asarray(apply(variables, picture[None])["2048"][0])
        np.testing.assert_allclose(row, expected, rtol=1e-4, atol=1e-5 * expected.max())
    assert (str(found["network"]), str(found["resize"])) == (
        "inception_fid",
        "tensorflow1 to 299 px",
    )
    nearest = command(search.main, "--run=run", "--features=x.npz", "--query=1.png", "-k=1").out
    assert json.loads(nearest)["name"] == "1.png"


def test_only_fids_own_weights_give_fid(command, pictures, narrow, caplog):
    for run, sha256, name in (("fid", FID, "fid"), ("other", "0" * 64, "fd_inception_2048")):
        caplog.clear()
        converted(command, narrow, run, sha256)
        assert ("are not called FID" in caplog.text) == (run == "other")
        config = setup.load(run).config
        assert config.model.source_sha256 == sha256
        assert features.network(config, "768") == "inception_768"
        network = features.network(config, "2048")
        np.savez("x.npz", features=np.random.default_rng(0).normal(size=(9, 2)), network=network)
        made = command(frechet.main, "--a=x.npz", "--b=x.npz", "--metrics=fd")
        assert name in json.loads(made.out)


@pytest.mark.slow
def test_evaluate_says_fid(trained, command, pictures, narrow, monkeypatch):
    folder = pathlib.Path.cwd()
    for run, sha256 in (("fid", FID), ("other", "")):
        converted(command, narrow, run, sha256)
    monkeypatch.chdir(trained.parent)
    for run, names in (
        ("fid", ("fid", "kid")),
        ("other", ("fd_inception_2048", "kd_inception_2048")),
    ):
        outcome = command(
            evaluate.main, "--run=run", "--evaluators=generation", f"--features={folder / run}",
            "--count=8", "--allow_few", f"--out={folder / run}.json",
        )  # fmt: skip
        assert outcome.code == 0, outcome.err
        found = json.loads((folder / f"{run}.json").read_text())
        assert {f"test/{name}" for name in names} <= found.keys()
        assert sum("fid" in name or "kid" in name for name in found if "test/" in name) == (
            2 + 4 if run == "fid" else 0  # precision_inception_fid and so on
        )
        assert "tensorflow1 to 299 px" in found["features"]


def test_a_vision_tower_alone_is_that_of_the_whole(command, pictures):
    for kind in ("clip", "clip_vision"):
        path = references.weights(CLIP)
        assert command(convert.main, f"--kind={kind}", f"--path={path}", f"--run={kind}").code == 0
    for layer in ("", "--layer=pooled", "--layer=hidden_0"):
        whole, alone = (extracted(command, run, "--overwrite", *filter(None, [layer]))
                        for run in ("clip", "clip_vision"))  # fmt: skip
        np.testing.assert_allclose(alone["features"], whole["features"], rtol=1e-5, atol=1e-6)
        assert alone["network"] == whole["network"] and alone["resize"] == whole["resize"]
    refused = command(recognize.main, "--run=clip_vision", "0.png", "--descriptions=a,b")
    assert "names nothing" in refused.sentence
    refused = command(main.main, "--config=clip_vision/config.json", "--workdir=new")
    assert "published network alone" in refused.sentence


def test_a_vision_tower_without_projection_has_no_embedding(command, pictures):
    path = references.weights(REFERENCES / "clip_vision")
    assert command(convert.main, "--kind=clip_vision", f"--path={path}", "--run=run").code == 0
    assert str(extracted(command, "run")["network"]) == "clip_pooled"
    spatial = extracted(command, "run", "--spatial", "--overwrite")
    assert spatial["features"].shape == (3, 3, 3, 18) and str(spatial["network"]) == "clip_hidden_1"


def test_towers_alone_begin_a_run(command, tmp_path, monkeypatch):
    """config.init takes the weights of a whole CLIP's towers from runs that hold one each."""
    monkeypatch.chdir(tmp_path)
    for kind in ("clip", "clip_text", "clip_vision"):
        weights = references.weights(CLIP)
        assert (
            command(convert.main, f"--kind={kind}", f"--path={weights}", f"--run={kind}").code == 0
        )
    whole = setup.load("clip")
    config = config_lib.load("clip/config.json")
    with config.unlocked():
        config.init.update(text_encoder="clip_text", vision_encoder="clip_vision", projections="")
    _, state = setup.start(config, whole.task)
    for name in ("text_encoder", "vision_encoder"):
        own = {k: v for k, v in state.params.items() if k.startswith(f"{name}/")}
        theirs = layout.flat(whole.variables["params"])
        assert own.keys() == {k for k in theirs if k.startswith(f"{name}/")}
        for path, leaf in own.items():
            np.testing.assert_array_equal(leaf, theirs[path])


def test_every_kind_that_is_read_becomes_a_run():
    assert KINDS.keys() - {"diffusers"} == pretrained.KINDS.keys()
