"""A run folder of a published CLIP: its tokens and logits, and what commands make of it."""

from __future__ import annotations

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from tests.pretrained import references
from vision_lang import convert, evaluate, extract, main, recognize, search
from vision_lang.training import setup

FOLDER = pathlib.Path(__file__).parents[1] / "fixtures" / "references" / "clip_folder"
PROMPTS = ["a RED cat", "a  cat's 2 red?"]  # those of make_references.py
_, PARTS = references.read(FOLDER)
LOGITS = PARTS["outputs"]["logits_per_image"]


@pytest.fixture
def run(command, tmp_path, monkeypatch):
    """The run, with the pictures as files 0.png, ... and the prompts in texts.txt beside it."""
    monkeypatch.chdir(tmp_path)
    made = command(convert.main, "--kind=clip", f"--path={references.weights(FOLDER)}", "--run=run")
    assert made.code == 0, made.err
    for i, picture in enumerate(PARTS["inputs"]["images"]):
        Image.fromarray(picture).save(f"{i}.png")
    pathlib.Path("texts.txt").write_text("\n".join(PROMPTS))
    return "run"


def test_tokens_and_logits_are_the_librarys(run):
    """Pictures are preprocessed here and there."""
    loaded, inputs = setup.load(run), PARTS["inputs"]
    tokens, mask = loaded.tokenizer.encode_batch(PROMPTS, loaded.config.data.text_length)
    np.testing.assert_array_equal(tokens, inputs["tokens"])
    pixels = loaded.task.preprocess(inputs["images"])
    np.testing.assert_allclose(pixels, inputs["pixels"], atol=1e-6)

    @jax.jit
    def logits(variables, images, tokens, mask):
        text = loaded.task.embed_texts(variables, tokens, mask)
        image = loaded.task.embed_images(variables, images)
        return loaded.task.similarity(variables, image, text)

    found = logits(loaded.variables, inputs["images"], tokens, mask)
    allowed = max(
        references.TOLERANCE * references.rms(LOGITS),
        10 * float(PARTS["errors"]["logits_per_image"]),
    )
    assert references.rms(np.asarray(found) - LOGITS) <= allowed


def test_pictures_are_recognised_by_description(run, command):
    names = [f"{i}.png" for i in range(len(LOGITS))]
    made = command(recognize.main, f"--run={run}", "--descriptions=texts.txt", *names)
    assert made.code == 0, made.err
    for line, row in zip(made.out.splitlines(), LOGITS.astype(np.float64), strict=True):
        found = dict(json.loads(line)["top"])
        wanted = np.exp(row - row.max()) / np.exp(row - row.max()).sum()
        assert [found[text] for text in PROMPTS] == pytest.approx(wanted, abs=1e-5)
    templates = ("--templates={}", "--templates=red {}")
    assert command(recognize.main, f"--run={run}", "--descriptions=a,cat", *templates, *names).out


def test_features_of_both_towers_are_compared(run, command):
    images = [f"--images={i}.png" for i in range(len(LOGITS))]
    assert command(extract.main, f"--run={run}", *images, "--out=i.npz").code == 0
    assert command(extract.main, f"--run={run}", "--texts=texts.txt", "--out=t.npz").code == 0
    with np.load("i.npz") as pictures, np.load("t.npz") as texts:
        cosines = pictures["features"] @ texts["features"].T
        np.testing.assert_allclose(np.exp(1.5) * cosines, LOGITS, rtol=1e-4, atol=1e-5)
        assert str(pictures["network"]) == "clip_embedding"
        assert str(pictures["resize"]) == "shortest_edge to 24 px"  # tests/parity: as the library
    found = command(search.main, f"--run={run}", "--features=i.npz", f"--query={PROMPTS[1]}").out
    best = json.loads(found.splitlines()[0])
    assert best["name"] == f"{cosines[:, 1].argmax()}.png"
    assert best["similarity"] == pytest.approx(cosines[:, 1].max(), abs=1e-5)
    patches = ("--layer=hidden_1", "--spatial", "--out=p.npz")
    assert command(extract.main, f"--run={run}", *images, *patches).code == 0
    with np.load("p.npz") as found:  # without the class token
        assert found["features"].shape == (3, 3, 3, 18) and str(found["network"]) == "clip_hidden_1"


@pytest.mark.slow
def test_it_is_tuned_and_measured_as_it_was(run, command):
    """A step of size 0 leaves the published weights, in a run that has data."""
    pathlib.Path("data").mkdir()
    lines = []
    for i, split in enumerate(["train"] * 4 + ["validation"] * 3):
        shutil.copy(f"{i % 3}.png", f"data/{i}.png")
        lines.append({"file_name": f"{i}.png", "text": PROMPTS[i % 2], "split": split})
    pathlib.Path("data/metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    made = command(
        main.main, f"--config={run}/config.json", "--workdir=tuned", "--config.data.path=data",
        "--config.data.dir=prepared", "--config.steps=1", "--config.batch_size=2",
        "--config.optimizer.learning_rate=0.0", "--config.log_every=1", "--config.cpu_devices=1",
    )  # fmt: skip
    assert made.code == 0, made.err
    before, after = setup.load(run).variables, setup.load("tuned").variables
    jax.tree.map(np.testing.assert_array_equal, before, after)
    assert command(evaluate.main, "--run=tuned", "--split=validation").code == 0
    results = json.loads(pathlib.Path("tuned/results.json").read_text())
    assert results["validation/n"] == 3 and 0 <= results["validation/t2i_recall1"] <= 1


def copied(tmp_path):
    """The folder as it is published."""
    left_out = shutil.ignore_patterns("example.safetensors")
    return shutil.copytree(FOLDER, tmp_path / "clip", ignore=left_out)


def test_what_does_not_fit_together_is_refused(command, tmp_path):
    folder = copied(tmp_path)

    def sentence(file, **fields):
        content = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps(content | fields))
        arguments = ("--kind=clip", f"--path={folder}", f"--run={tmp_path / 'run'}")
        outcome = command(convert.main, *arguments)
        (folder / file).write_text(json.dumps(content))
        return outcome.sentence

    file = "preprocessor_config.json"
    assert "do_center_crop=False" in sentence(file, do_center_crop=False)
    assert "crop_size" in sentence(file, crop_size={"height": 32, "width": 32})
    assert "image_mean" in sentence(file, image_mean=[0.1, 0.1, 0.1])
    text = json.loads((folder / "config.json").read_text())["text_config"]
    assert "looks for 7" in sentence("config.json", text_config=text | {"eos_token_id": 7})
    (folder / "processor_config.json").write_text('{"image_processor": {"resample": 2}}')
    (folder / file).unlink()
    assert "resample=2" in sentence("processor_config.json")
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").unlink()
    (folder / "processor_config.json").unlink()
    assert "no tokenizer.json" in sentence("config.json")
    assert not (tmp_path / "run").exists()


def test_half_a_mean_is_our_symmetric_preprocessing(command, tmp_path):
    folder, half = copied(tmp_path), [0.5, 0.5, 0.5]
    file = folder / "preprocessor_config.json"
    content = json.loads(file.read_text()) | {"image_mean": half, "image_std": half}
    file.write_text(json.dumps(content))
    command(convert.main, "--kind=clip", f"--path={folder}", f"--run={tmp_path / 'run'}")
    assert setup.load(str(tmp_path / "run")).config.model.preprocessing == "symmetric"
