"""Images to words: recognize, describe and extract, on finished tiny runs."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from vision_lang import describe, extract, recognize
from vision_lang.metrics.frechet import __main__ as frechet
from vision_lang.shapes import splits
from vision_lang.shapes.draw import draw
from vision_lang.training import setup


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """Five pictures of the built-in world, one broken file among them; the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    for i in range(5):
        picture = draw(splits.sample(0, "test", i), 32)
        Image.fromarray(picture).save(tmp_path / "pictures" / f"{i}.png")
    (tmp_path / "pictures" / "3broken.png").write_bytes(b"no picture")
    return tmp_path / "pictures"


GOOD = [f"pictures/{i}.png" for i in range(5)]


def lines(outcome):
    return [json.loads(line) for line in outcome.out.splitlines()]


def test_recognize_answers_for_each_picture_it_can_read(recogniser, pictures, command):
    outcome = command(recognize.main, f"--run={recogniser}", "--top=2", "pictures")
    assert outcome.code == 1 and "pictures/3broken.png" in outcome.err
    found = lines(outcome)
    assert [line["image"] for line in found] == GOOD
    names = json.loads((recogniser / "data.json").read_text())["class_names"]
    loaded = setup.load(str(recogniser))
    images = np.stack([np.asarray(Image.open(name)) for name in GOOD])
    logits = np.asarray(loaded.task.logits(loaded.variables, images), np.float64)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    for row, line in zip(p, found, strict=True):
        order = np.argsort(-row)[:2]
        assert [name for name, _ in line["top"]] == [names[i] for i in order]
        np.testing.assert_allclose([q for _, q in line["top"]], row[order], atol=1e-5)
        assert [line["label"], line["probability"]] == line["top"][0]
    alone = command(recognize.main, f"--run={recogniser}", "--top=2", GOOD[2])
    assert alone.code == 0 and lines(alone) == [found[2]]  # whatever else is asked


def test_of_several_labels_those_more_likely_than_not_are_told():
    row, names = np.array([0.2, 0.9, 0.5, 0.6]), ["a", "b", "c", "d"]
    found = recognize.answer(row, names, 3, several=True)
    assert found["labels"] == [["b", 0.9], ["d", 0.6]]
    assert found["top"] == [["b", 0.9], ["d", 0.6], ["c", 0.5]]
    assert recognize.answer(np.zeros(4), names, 1, several=True)["labels"] == []


@pytest.mark.parametrize("method", ["greedy", "beam", "nucleus"])
def test_describe_writes_a_text_for_each_picture(captioner, pictures, command, method):
    arguments = (f"--run={captioner}", f"--decode={method}", "--beams=2")
    outcome = command(describe.main, *arguments, "pictures")
    assert outcome.code == 1 and "pictures/3broken.png" in outcome.err
    found = lines(outcome)
    assert [line["image"] for line in found] == GOOD
    alone = command(describe.main, *arguments, GOOD[3])
    assert lines(alone) == [found[3]]  # whatever else is asked, drawn texts too
    assert all(isinstance(line["caption"], str) and line["logprob"] < 0 for line in found)
    for line in found:
        candidates = line.get("candidates", [])
        assert len(candidates) == (2 if method == "beam" else 0)
        scores = [candidate["score"] for candidate in candidates]
        assert scores == sorted(scores, reverse=True)


def test_describe_draws_where_it_looks(captioner, pictures, command):
    outcome = command(describe.main, f"--run={captioner}", "--attention=look.png", *GOOD[:2])
    assert outcome.code == 0, outcome.err
    with Image.open("look.png") as page:
        assert page.size[0] > page.size[1] > 96


def test_extract_gives_the_layer_that_is_asked_for(recogniser, pictures, command):
    outcome = command(
        extract.main, f"--run={recogniser}", "--images=pictures", "--layer=conv2_1", "--out=a.npz"
    )
    assert outcome.code == 1 and "3broken.png" in outcome.err
    loaded = setup.load(str(recogniser))
    images = np.stack([np.asarray(Image.open(name)) for name in GOOD])
    wanted = np.asarray(loaded.task.layers(loaded.variables, images)["conv2_1"])
    with np.load("a.npz") as found:
        np.testing.assert_allclose(found["features"], wanted.mean((1, 2)), rtol=1e-4, atol=1e-6)
        assert found["names"].tolist() == GOOD and "conv2_1" in str(found["network"])
    spatial = ("--layer=conv2_1", "--out=b.npz", "--spatial", "--images=pictures/*.png")
    assert command(extract.main, f"--run={recogniser}", *spatial).code == 1
    with np.load("b.npz") as found:
        np.testing.assert_allclose(found["features"], wanted, rtol=1e-4, atol=1e-6)


def test_features_come_in_shards_that_other_commands_read(recogniser, pictures, command):
    arguments = [f"--run={recogniser}", *[f"--images={name}" for name in GOOD], "--shard_size=2"]
    assert command(extract.main, *arguments, "--out=f.npz").code == 0
    parts = sorted(path.name for path in pictures.parent.glob("f-*.npz"))
    assert parts == ["f-00000.npz", "f-00001.npz", "f-00002.npz"]
    assert [len(np.load(part)["names"]) for part in parts] == [2, 2, 1]
    again = command(extract.main, *arguments, "--out=f.npz").sentence
    assert "exists" in again and "--overwrite" in again
    assert command(extract.main, *arguments, "--out=f.npz", "--overwrite").code == 0
    same = command(frechet.main, "--a=f-*.npz", "--b=f-*.npz", "--metrics=fd", "--allow_few")
    (distance,) = [v for name, v in json.loads(same.out).items() if name.startswith("fd_")]
    assert distance < 1e-6


def test_wrong_input_is_one_sentence(recogniser, captioner, pictures, command):
    (pictures.parent / "a.txt").write_text("a red circle\n")
    cases = [
        (recognize.main, f"--run={captioner}", GOOD[0], "does not recognise"),
        (describe.main, f"--run={recogniser}", GOOD[0], "does not describe"),
        (recognize.main, f"--run={recogniser}", "nowhere.png", "no picture at 'nowhere.png'"),
        (extract.main, f"--run={recogniser}", "--images=pictures", "--layer=conv9", "'conv2"),
        (extract.main, f"--run={recogniser}", "either --images or --texts"),
        (extract.main, f"--run={captioner}", "--texts=a.txt", "no features of texts"),
    ]
    for main, *arguments, message in cases:
        assert message in command(main, *arguments).sentence
    assert "Name pictures" in command(recognize.main, f"--run={recogniser}").sentence
