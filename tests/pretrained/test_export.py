"""Networks of runs as published weights: converted and written back they are the same bits."""

from __future__ import annotations

import pathlib
import shutil

import jax
import numpy as np
import pytest
from etils import epath
from safetensors.numpy import load_file

from tests.pretrained import references
from vision_lang import convert, export, pretrained
from vision_lang.pretrained import tensors
from vision_lang.training import stored

REFERENCES = pathlib.Path(__file__).parents[1] / "fixtures" / "references"


@pytest.mark.parametrize(
    "network, part", [("unet", "unet"), ("autoencoder", "vae"), ("text_encoder", "text_encoder")]
)
def test_a_whole_folder_and_back(network, part, command, tmp_path):
    folder, run, out = REFERENCES / "pipeline", tmp_path / "run", tmp_path / "out.safetensors"
    command(convert.main, "--kind=diffusers", f"--path={folder}", f"--run={run}")
    made = command(export.main, f"--run={run}", f"--network={network}", f"--out={out}")
    assert made.code == 0, made.err
    theirs = load_file(references.weights(folder / part))
    ours = {name.removeprefix("text_model."): x for name, x in load_file(out).items()}
    assert ours.keys() == theirs.keys()
    for name, x in theirs.items():
        np.testing.assert_array_equal(ours[name], x, err_msg=name)


@pytest.mark.parametrize(
    "case, kind, network", [("gpt2", "gpt2", "decoder"), ("vgg_torchvision_bn", "vgg", "encoder")]
)
def test_a_file_and_back(case, kind, network, command, tmp_path):
    file, run, out = (
        references.weights(REFERENCES / case),
        tmp_path / "run",
        tmp_path / "out.safetensors",
    )
    command(convert.main, f"--kind={kind}", f"--path={file}", f"--run={run}")
    command(export.main, f"--run={run}", f"--network={network}", f"--out={out}")
    theirs = {n: x for n, x in load_file(file).items() if not n.endswith("num_batches_tracked")}
    ours = load_file(out)
    assert ours.keys() == theirs.keys()
    for name, x in theirs.items():
        np.testing.assert_array_equal(ours[name], x, err_msg=name)


@pytest.mark.parametrize("ending", [".safetensors", ".h5"])
def test_a_vgg_of_kerass_and_back(ending, command, tmp_path):
    """Its preprocessing goes with it, and the map that its dense layers read is not 7x7."""
    file = references.weights(REFERENCES / "vgg_keras3")
    run, out = tmp_path / "run", tmp_path / f"out{ending}"
    command(convert.main, "--kind=vgg", f"--path={file}", f"--run={run}")
    made = command(export.main, f"--run={run}", "--network=encoder", f"--out={out}")
    assert made.code == 0, made.err
    there, before = pretrained.load("vgg", file)
    back, after = pretrained.load("vgg", out)
    assert (back.net, back.source, back.preprocessing) == (there.net, "keras", "keras")
    jax.tree.map(np.testing.assert_array_equal, before, after)


def test_how_pictures_were_preprocessed_goes_with_an_encoder(command, tmp_path):
    file = references.weights(REFERENCES / "vgg_torchvision_bn")
    model, variables = pretrained.load("vgg", file)
    tensors.write(tmp_path / "a.safetensors", load_file(file), {"preprocessing": "symmetric"})
    command(
        convert.main, "--kind=vgg", f"--path={tmp_path / 'a.safetensors'}",
        f"--run={tmp_path / 'run'}",
    )  # fmt: skip
    command(
        export.main, f"--run={tmp_path / 'run'}", "--network=encoder",
        f"--out={tmp_path / 'b.safetensors'}",
    )  # fmt: skip
    assert model.preprocessing == "torchvision"
    assert pretrained.load("vgg", tmp_path / "b.safetensors").model.preprocessing == "symmetric"


def test_a_vgg_without_head_is_an_encoder_to_begin_with(command, tmp_path):
    whole = load_file(references.weights(REFERENCES / "vgg_torchvision_bn"))
    theirs = {n: x for n, x in whole.items() if n.startswith("features.")}
    source, run, out = (str(tmp_path / name) for name in ("a.safetensors", "run", "b.safetensors"))
    tensors.write(epath.Path(source), theirs, {"preprocessing": "torchvisions"})
    made = command(convert.main, "--kind=vgg", f"--path={source}", f"--run={run}")
    assert "Did you mean 'torchvision'?" in made.sentence
    tensors.write(epath.Path(source), theirs, {})
    command(convert.main, "--kind=vgg", f"--path={source}", f"--run={run}")
    _, found = stored.weights_of(run)  # what config.init.encoder=RUN reads
    assert {name.split("/")[1] for name in found} == {"encoder"}
    command(export.main, f"--run={run}", "--network=encoder", f"--out={out}")
    ours = load_file(out)
    assert ours.keys() == {n for n in theirs if not n.endswith("num_batches_tracked")}
    for name, x in ours.items():
        np.testing.assert_array_equal(theirs[name], x, err_msg=name)


@pytest.mark.parametrize(
    "network, kind",
    [("clip", "clip"), ("text_encoder", "clip_text"), ("vision_encoder", "clip_vision")],
)
def test_a_clip_and_back(network, kind, command, tmp_path):
    folder, run = REFERENCES / "clip_folder", tmp_path / "run"
    out = tmp_path / "clip" / "model.safetensors"
    command(convert.main, "--kind=clip", f"--path={references.weights(folder)}", f"--run={run}")
    made = command(export.main, f"--run={run}", f"--network={network}", f"--out={out}")
    assert made.code == 0, made.err
    shutil.copy(folder / "config.json", out.parent)
    theirs, ours = load_file(references.weights(folder)), load_file(out)
    if network == "clip":
        assert ours.keys() == theirs.keys()
    for name, x in ours.items():
        np.testing.assert_array_equal(theirs[name], x, err_msg=name)
    pretrained.load(kind, out)  # and nothing is missing


def test_networks_of_our_own_architecture_are_refused(command, trained, recogniser, tmp_path):
    def sentence(*arguments):
        return command(export.main, *arguments).sentence

    out = f"--out={tmp_path / 'x.safetensors'}"
    assert "positions=True" in sentence(f"--run={trained}", "--network=unet", out)
    assert "causal=False" in sentence(f"--run={trained}", "--network=text_encoder", out)
    assert "no network 'decoder'" in sentence(f"--run={trained}", "--network=decoder", out)
    assert "model.encoder" in sentence(f"--run={recogniser}", "--network=encoder", out)
    assert "Did you mean 'unet'?" in sentence(f"--run={trained}", "--network=unets", out)
    assert "--out=FILE" in sentence(f"--run={trained}", "--network=unet", "--out=x.bin")
    assert "Keras" in sentence(f"--run={trained}", "--network=unet", "--out=x.h5")
