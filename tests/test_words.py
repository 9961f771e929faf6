"""Images to words: recognize, describe and extract, on finished tiny runs."""

from __future__ import annotations

import json
import re

import jax
import numpy as np
import pytest
from PIL import Image

from configs import captioning, contrastive
from vision_lang import describe, evaluate, extract, recognize
from vision_lang.data import sources, tokenizer
from vision_lang.metrics import probes
from vision_lang.metrics.frechet import __main__ as frechet
from vision_lang.runs.folder import RunFolder
from vision_lang.shapes import splits
from vision_lang.shapes.draw import draw
from vision_lang.tasks import descriptions
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


TEXTS = ["one red circle", "a blue square on a black background", "two shapes"]


def test_recognize_by_likelihood(captioner, pictures, command):
    """--descriptions of a captioning run, in a file."""
    (pictures.parent / "texts.txt").write_text("\n".join(TEXTS) + "\n")
    arguments = (f"--run={captioner}", "--descriptions=texts.txt")
    outcome = command(recognize.main, *arguments, "--top=2", "pictures")
    assert outcome.code == 1 and "pictures/3broken.png" in outcome.err
    found = lines(outcome)
    assert [line["image"] for line in found] == GOOD
    loaded = setup.load(str(captioner))
    tokens, mask = loaded.tokenizer.encode_batch(TEXTS, loaded.config.data.text_length)
    images = np.stack([np.asarray(Image.open(name)) for name in GOOD]).repeat(3, 0)
    likelihood = jax.jit(loaded.task.log_likelihood)(
        loaded.variables, images, np.tile(tokens, (5, 1)), np.tile(mask, (5, 1))
    )
    p = jax.nn.softmax(np.asarray(likelihood).reshape(5, 3))
    for row, line in zip(np.asarray(p), found, strict=True):
        order = np.argsort(-row)[:2]
        assert [name for name, _ in line["top"]] == [TEXTS[i] for i in order]
        np.testing.assert_allclose([q for _, q in line["top"]], row[order], atol=1e-5)
        assert [line["label"], line["probability"]] == line["top"][0]


def test_recognize_by_denoising(trained, pictures, command):
    """--descriptions of a diffusion run, in any order, of one picture or of several."""
    arguments = (f"--run={trained}", "--noises=2", "--error=picture")
    several = '"a green ring, on white","one red circle"'
    found = lines(command(recognize.main, *arguments, f"--descriptions={several}", *GOOD[:3]))
    assert {name for name, _ in found[0]["top"]} == {"a green ring, on white", "one red circle"}
    assert all(sum(p for _, p in line["top"]) == pytest.approx(1, abs=1e-5) for line in found)
    turned = '"one red circle", "a green ring, on white"'
    alone = lines(command(recognize.main, *arguments, f"--descriptions={turned}", GOOD[1]))
    assert alone == [found[1]]


def test_recognize_by_similarity(captioner, pictures, command, monkeypatch):
    """A contrastive run of data with classes: their names through several templates, to a way whose
    score is the number of tokens in a candidate's texts."""
    config, names = contrastive.get_config("tiny"), ["Ankle_boot", "Bag", "dog"]
    config.data.name = "folder"
    words = tokenizer.load(captioner / "tokenizer.json")
    run = setup.Loaded(RunFolder(captioner), config, None, words, names, {}, "", False)
    monkeypatch.setattr(setup, "load", lambda *arguments: run)
    count = lambda variables, candidates: candidates.mask.sum((1, 2)) / 4  # noqa: E731
    way = descriptions.Way(count, lambda variables, counts, images, which: counts[which])
    monkeypatch.setitem(descriptions.WAYS, "contrastive", lambda task, how: way)
    texts = ["see an Ankle boot", "see a Bag", "see a dog", "Ankle boot!", "Bag!", "dog!"]
    _, mask = words.encode_batch(texts, config.data.text_length)
    wanted = np.exp(mask.sum(1).reshape(2, 3).sum(0) / 4)
    wanted = dict(zip(names, (wanted / wanted.sum()).tolist(), strict=True))
    arguments = ("--run=x", "--templates=see {a}", "--templates={}!", "--top=3", *GOOD[:2])
    found = lines(command(recognize.main, *arguments))
    assert len(found) == 2
    for line in found:
        assert dict(line["top"]) == pytest.approx(wanted, abs=1e-5)


def test_a_captioner_begins_with_the_encoder_of_a_recogniser(recogniser, captioner):
    """As its config's docstring says; the head that names classes stays behind."""
    config = captioning.get_config("tiny")
    config.init.encoder = str(recogniser)
    _, state = setup.start(
        config, setup.make_task(config, tokenizer.load(captioner / "tokenizer.json"), 0)
    )
    there = setup.load(str(recogniser)).variables["params"]["encoder"]
    kernels = {name: value for name, value in state.params.items() if name.startswith("encoder/")}
    assert len(kernels) > 5 and "logits" in there
    for name, value in kernels.items():
        _, layer, leaf = name.split("/")
        np.testing.assert_array_equal(value, there[layer][leaf])


def test_a_probe_of_a_finished_run(recogniser, pictures, command, monkeypatch):
    """What metrics/probes.py says of the layer, averaged over each picture."""
    monkeypatch.chdir(recogniser.parent)
    loaded = setup.load("run")
    data = sources.prepare(loaded.config.data)

    def features(split):
        source = data.open(split)
        images = np.stack([source[i]["image"] for i in range(len(source))])
        layer = np.asarray(loaded.task.layers(loaded.variables, images)["conv2_1"])
        return layer.mean((1, 2)), source.labels()

    (known, labels), (asked, truth) = features("train"), features("test")
    linear = probes.fit_linear_probe(known, labels, len(data.class_names)).logits(asked)
    votes = probes.nearest_neighbours(known, labels, asked, len(data.class_names))
    out = pictures.parent / "probe.json"
    arguments = ("--evaluators=probe", "--layer=conv2_1", "--split=test", f"--out={out}")
    outcome = command(evaluate.main, "--run=run", *arguments)
    assert outcome.code == 0, outcome
    found = json.loads(out.read_text())
    assert found["test/linear"] == pytest.approx(np.mean(linear.argmax(1) == truth))
    assert found["test/knn"] == pytest.approx(np.mean(votes.argmax(1) == truth))
    assert found["test/probe_n"] == len(truth) > 10


def test_evaluate_by_description(captioner, pictures, command, monkeypatch):
    """The same numbers twice; the run's own results stay."""
    monkeypatch.chdir(captioner.parent)
    before = (captioner / "results.json").read_text()
    arguments = ("--run=run", "--evaluators=descriptions", "--split=test", "--choices=3")
    out = pictures.parent / "by.json"
    for _ in range(2):
        outcome = command(evaluate.main, *arguments, "--count=9", f"--out={out}")
        assert outcome.code == 0, outcome
        found = json.loads(out.read_text())
    assert found["test/top1_n"] == 9 and found["test/choices"] == 3
    assert found["test/top1"] * 9 == pytest.approx(round(found["test/top1"] * 9))
    assert (captioner / "results.json").read_text() == before
    wrong = {
        "--evaluators=descriptoins": "Did you mean 'descriptions'",
        "--noises=3": "--noises is for diffusion runs",
        "--per_token": "--per_token is for --evaluators=descriptions",
    }
    for argument, message in wrong.items():
        assert message in command(evaluate.main, "--run=run", argument).sentence


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
    fewer = [f"--run={recogniser}", f"--images={GOOD[0]}", "--shard_size=2", "--out=f.npz"]
    assert "exists" in command(extract.main, *fewer).sentence
    assert command(extract.main, *fewer, "--overwrite").code == 0
    assert [path.name for path in pictures.parent.glob("f*.npz")] == ["f.npz"]
    assert command(extract.main, *arguments, "--out=f.npz", "--overwrite").code == 0
    assert sorted(path.name for path in pictures.parent.glob("f*.npz")) == parts
    same = command(frechet.main, "--a=f-*.npz", "--b=f-*.npz", "--metrics=fd", "--allow_few")
    (distance,) = [v for name, v in json.loads(same.out).items() if name.startswith("fd_")]
    assert distance < 1e-6


def test_wrong_input_is_one_sentence(recogniser, captioner, pictures, command):
    (pictures.parent / "a.txt").write_text("a red circle\n")
    cases = [
        (recognize.main, f"--run={captioner}", GOOD[0], "give --descriptions"),
        (recognize.main, f"--run={recogniser}", "--descriptions=a,b", GOOD[0], "recognition run"),
        (recognize.main, f"--run={captioner}", "--templates={}", GOOD[0], "contrastive runs"),
        (describe.main, f"--run={recogniser}", GOOD[0], "does not describe"),
        (recognize.main, f"--run={recogniser}", "nowhere.png", "no picture at 'nowhere.png'"),
        (extract.main, f"--run={recogniser}", "--images=pictures", "--layer=conv9", "'conv2"),
        (extract.main, f"--run={recogniser}", "either --images or --texts"),
        (extract.main, f"--run={captioner}", "--texts=a.txt", "no features of texts"),
    ]
    for main, *arguments, message in cases:
        assert message in command(main, *arguments).sentence
    (pictures.parent / "empty.txt").write_text("a\n\nb\n")
    for given, message in {
        "empty.txt": "'empty.txt': description 2 is empty",
        "a,,b": "description 2 is empty",
        "a,b,a": "description 3, 'a', is there twice",
        "a": "no choice, and there is no such file",
        '"a" "b"': "no file, and no list",
        f"a,{'word ' * 40}": f"Too long.*'{('word ' * 40).strip()}'",
        "pictures/0.png": "cannot be read as text",
    }.items():
        outcome = command(recognize.main, f"--run={captioner}", f"--descriptions={given}", GOOD[0])
        assert re.search(message, outcome.sentence), given
    assert "Name pictures" in command(recognize.main, f"--run={recogniser}").sentence
