"""Files that cannot be read are refused with a sentence that says what is wrong."""

from __future__ import annotations

import json
import logging
import pathlib
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from vision_lang import pretrained
from vision_lang.errors import InputError
from vision_lang.pretrained import tensors as files

REFERENCES = pathlib.Path(__file__).parents[1] / "fixtures" / "references"


@pytest.fixture
def gpt2(tmp_path):
    """A folder of GPT-2's weights, to be spoilt."""
    (tmp_path / "gpt2").mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(REFERENCES / "gpt2" / name, tmp_path / "gpt2" / name)
    return tmp_path / "gpt2"


def change(folder: pathlib.Path, spoil) -> None:
    """Writes the weights anew, as `spoil` leaves them."""
    tensors = load_file(folder / "model.safetensors")
    spoil(tensors)
    save_file(tensors, folder / "model.safetensors")


def refused(kind: str, path, *words: str) -> None:
    with pytest.raises(InputError) as error:
        pretrained.load(kind, path)
    for word in words:
        assert word in str(error.value), error.value


def shards(folder: pathlib.Path) -> dict[str, str]:
    """The same weights in two shards; returns the index's map."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    where = {n: f"model-{i % 2}.safetensors" for i, n in enumerate(sorted(tensors))}
    for file in set(where.values()):
        save_file({n: tensors[n] for n in tensors if where[n] == file}, folder / file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return where


def test_shards_are_one_file(gpt2):
    _, whole = pretrained.load("gpt2", gpt2)
    shards(gpt2)
    _, found = pretrained.load("gpt2", gpt2)
    np.testing.assert_array_equal(
        found["params"]["wte"]["embedding"], whole["params"]["wte"]["embedding"]
    )


def test_a_shard_that_is_missing(gpt2):
    shards(gpt2)
    (gpt2 / "model-1.safetensors").unlink()
    refused("gpt2", gpt2, "shards that are not there", "model-1.safetensors")


def test_a_file_that_was_cut_off(gpt2):
    file = gpt2 / "model.safetensors"
    for size in (len(file.read_bytes()) - 1, 100, 3):
        file.write_bytes(file.read_bytes()[:size])
        refused("gpt2", gpt2, str(file), "cut off", f"{size:,} bytes")


@pytest.mark.parametrize("name", ["model.bin", "model.pth"])
def test_a_pickle_is_refused_with_the_way_to_convert_it(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x80\x02}q\x00.")
    for path in (tmp_path, tmp_path / name):
        refused("vgg", path, "pickle", "vision_lang.pretrained.from_torch", "model.safetensors")


def test_tensors_that_are_missing_left_over_or_of_another_shape_are_all_named(gpt2):
    def spoil(tensors):
        tensors["transformer.h.0.extra"] = tensors.pop("transformer.ln_f.weight")

    change(gpt2, spoil)
    refused("gpt2", gpt2, "missing: transformer.ln_f.weight", "left over: transformer.h.0.extra")

    def reshape(tensors):
        tensors["transformer.ln_f.weight"] = tensors.pop("transformer.h.0.extra")[:3]
        tensors["transformer.wpe.weight"] = tensors["transformer.wpe.weight"].ravel()

    change(gpt2, reshape)
    refused("gpt2", gpt2, "transformer.ln_f.weight (3,)", "transformer.wpe.weight", "wpe/embedding")


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16])
def test_half_precision_is_cast_and_the_log_says_so(gpt2, dtype, caplog):
    def halve(tensors):
        for name in tensors:
            tensors[name] = tensors[name].astype(dtype)

    change(gpt2, halve)
    with caplog.at_level(logging.INFO, logger="absl"):
        _, variables = pretrained.load("gpt2", gpt2)
    assert variables["params"]["wte"]["embedding"].dtype == np.float32
    assert f"tensors cast from {np.dtype(dtype).name} to float32" in caplog.text


def test_quantised_weights_are_refused(gpt2):
    change(gpt2, lambda t: t.update({"transformer.ln_f.bias": np.zeros(3, np.int8)}))
    refused("gpt2", gpt2, "transformer.ln_f.bias", "int8")


def test_output_embeddings_of_their_own_are_refused(gpt2):
    tied = load_file(gpt2 / "model.safetensors")["transformer.wte.weight"]
    change(gpt2, lambda t: t.update({"lm_head.weight": tied}))
    pretrained.load("gpt2", gpt2)
    change(gpt2, lambda t: t.update({"lm_head.weight": tied + 1}))
    refused("gpt2", gpt2, "lm_head.weight")


@pytest.mark.parametrize(
    "kind, of, words",
    [
        ("gpt2", "clip", ("model_type='clip'",)),
        ("clip", "gpt2", ("model_type='gpt2'",)),
        ("clip_text", "t5_gated", ("model_type='t5'",)),
        ("clip_vision", "clip_text", ("model_type='clip_text_model'",)),
        ("t5_encoder", "gpt2", ("model_type='gpt2'",)),
        ("unet", "autoencoder", ("_class_name='AutoencoderKL'",)),
        ("autoencoder", "unet_1", ("_class_name='UNet2DConditionModel'",)),
        ("vgg", "gpt2", ("no VGG", "features.0.weight")),
        ("inception_fid", "gpt2", ("another network's", "Conv2d_1a_3x3.", "transformer.h.0.")),
    ],
)
def test_another_architecture(kind, of, words, tmp_path):
    for file in (REFERENCES / of).iterdir():
        if file.name != "example.safetensors":
            shutil.copy(file, tmp_path / file.name)
    refused(kind, tmp_path, *words)


def test_an_option_that_is_not_built_is_named(gpt2):
    config = json.loads((gpt2 / "config.json").read_text())
    (gpt2 / "config.json").write_text(json.dumps(config | {"activation_function": "relu"}))
    refused("gpt2", gpt2, "activation_function='relu'", "'gelu_new'")
    (gpt2 / "config.json").write_text(json.dumps(config | {"n_head": 5}))
    refused("gpt2", gpt2, "no multiple of its heads=5")
    (gpt2 / "config.json").write_text(json.dumps(config | {"n_embd": "wide"}))
    refused("gpt2", gpt2, "n_embd='wide' is no number")
    (gpt2 / "config.json").write_text("{")
    refused("gpt2", gpt2, "config.json", "JSON")
    (gpt2 / "config.json").unlink()
    refused("gpt2", gpt2, "no", "config.json")


def test_a_type_that_numpy_has_not(gpt2):
    """float8, as some publish: here as a header without torch."""
    spoilt = {"x": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}}
    header = json.dumps(spoilt).encode()
    content = len(header).to_bytes(8, "little") + header + b"\0\0"
    (gpt2 / "model.safetensors").write_bytes(content)
    found = files.open(gpt2)
    with pytest.raises(InputError, match="x.* cannot be read .*float8"):
        found["x"]


def test_a_folder_for_several_libraries(gpt2):
    (gpt2 / "model.safetensors").rename(gpt2 / "pytorch_model.bin")
    (gpt2 / "tf_model.h5").write_bytes(b"")
    refused("gpt2", gpt2, "is a pickle", "from_torch")


def test_a_part_of_a_whole_folder_must_be_named():
    refused("unet", REFERENCES / "pipeline", "name one of", "text_encoder, unet, vae")


def test_paths_that_hold_no_weights(tmp_path):
    refused("vgg", tmp_path / "nothing", "no file or folder")
    refused("vgg", tmp_path, "holds no weights", "nothing")
    (tmp_path / "notes.txt").write_text("hello")
    refused("vgg", tmp_path, "holds no weights", "notes.txt")
    refused("vgg", tmp_path / "notes.txt", "no file of weights")
    (tmp_path / "x.h5").write_text("hello")
    refused("vgg", tmp_path, "no HDF5 file")
    refused("vggs", tmp_path, "Did you mean 'vgg'?")


def test_several_files_of_weights(gpt2):
    shutil.copy(gpt2 / "model.safetensors", gpt2 / "model.fp16.safetensors")
    pretrained.load("gpt2", gpt2)  # the one without a variant
    shutil.copy(gpt2 / "model.safetensors", gpt2 / "other.safetensors")
    refused("gpt2", gpt2, "several files", "other.safetensors")
