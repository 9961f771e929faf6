"""Published layouts live: fresh random models of the reference libraries, their outputs, and what
we write read by the libraries again."""

from __future__ import annotations

import hashlib
import importlib

import numpy as np
import pytest

from tests.pretrained import references
from vision_lang import pretrained
from vision_lang.pretrained import from_torch, tensors

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("diffusers")
from tests.fixtures import make_references  # noqa: E402

pytestmark = pytest.mark.parity


@pytest.mark.parametrize("seed", [11, 12, 13])
@pytest.mark.parametrize("case", make_references.CASES)
def test_a_fresh_model_of_the_library(case, seed, tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    make_references.CASES[case](seed)(tmp_path)
    references.compare(tmp_path)


CLASSES = {
    "gpt2_crossing": "transformers.GPT2LMHeadModel",
    "clip": "transformers.CLIPModel",
    "clip_text": "transformers.CLIPTextModel",
    "clip_text_projected": "transformers.CLIPTextModelWithProjection",
    "clip_vision": "transformers.CLIPVisionModel",
    "t5_gated": "transformers.T5EncoderModel",
    "unet_2": "diffusers.UNet2DConditionModel",
    "autoencoder": "diffusers.AutoencoderKL",
}


@pytest.mark.parametrize("case", CLASSES)
def test_the_library_reads_what_we_write(case, tmp_path):
    make_references.CASES[case](21)(tmp_path)
    file = references.weights(tmp_path)
    library, _, name = CLASSES[case].partition(".")
    kind = getattr(importlib.import_module(library), name)
    before = {n: x.numpy().copy() for n, x in kind.from_pretrained(tmp_path).state_dict().items()}
    model, variables = pretrained.load(references.read(tmp_path)[0], file)
    file.unlink()
    (tmp_path / "example.safetensors").unlink()
    pretrained.save(model, variables, file)
    after, how = kind.from_pretrained(tmp_path, output_loading_info=True)
    assert not how["missing_keys"] and not how["unexpected_keys"], how
    for name, x in after.state_dict().items():
        np.testing.assert_array_equal(x.numpy(), before[name], err_msg=name)


def test_a_pickle_becomes_safetensors(tmp_path):
    source, target = tmp_path / "a.pth", tmp_path / "a.safetensors"
    state = {"x": torch.arange(6.0).reshape(2, 3).T, "y": torch.ones(2, dtype=torch.float16)}
    for content in (state, {"state_dict": state, "epoch": 3}):
        torch.save(content, source)
        from_torch.main(str(source), str(target))
        found = tensors.open(target)
        assert set(found) == set(state)
        for name, x in state.items():
            np.testing.assert_array_equal(found[name], x.numpy())
        sha256 = hashlib.sha256(source.read_bytes()).hexdigest()
        assert found.metadata == {"source": "a.pth", "source_sha256": sha256}
