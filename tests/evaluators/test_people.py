"""configs/verification.py on a tiny lfw: nobody is on both sides, and strangers are verified."""

from __future__ import annotations

import zipfile

import jax
import numpy as np
import pytest
from tensorflow_datasets import features as f

from experiments.verification_emoji import prepare
from tests import commands
from tests.data.conftest import encode, plain, write_folder, write_tfds
from vision_lang.data import sources
from vision_lang.data.builders.folder_index import split_of
from vision_lang.evaluators import make_evaluators
from vision_lang.evaluators.context import Context
from vision_lang.runs import config as config_lib
from vision_lang.training import parallel, setup

PEOPLE = [f"Person_{n}" for n in range(60)]
SPLITS = ("train", "validation", "test")


def load(argument):
    return config_lib.load(f"{commands.ROOT}/configs/verification.py:{argument}").unlock()


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """lfw as TFDS has it: one split, names as text; two pictures of each person."""
    directory = tmp_path_factory.mktemp("lfw")
    structure = f.FeaturesDict({"label": f.Text(), "image": f.Image(shape=(250, 250, 3))})
    examples = [
        {"image": encode(plain(2 * n + k, 250)), "label": name}
        for n, name in enumerate(PEOPLE) for k in range(2)
    ]  # fmt: skip
    write_tfds(directory, "lfw", structure, {"train": examples})
    return directory


def test_nobody_is_on_both_sides(directory):
    config = load("tiny")
    config.data.dir = str(directory)
    data = sources.prepare(config.data)
    names = data.class_names or []
    labels = {name: data.open(name).labels() for name in SPLITS}
    found = {name: {names[k] for k in labels[name]} for name in SPLITS}
    assert set().union(*found.values()) == set(PEOPLE)
    assert sum(map(len, found.values())) == len(PEOPLE)
    for name in SPLITS:
        assert all(split_of(person) == name for person in found[name]) and len(found[name]) >= 4
        source = data.open(name)
        assert data.splits[name] == len(source) == 2 * len(found[name])
        for n in range(0, len(source), 5):  # grey value // 2 is the person's number
            value = int(source[n]["image"].mean())
            assert names[source[n]["label"]] == PEOPLE[value // 2]
    config.data.name = "lfw"  # for recognition people stay on every side
    by_picture = sources.prepare(config.data)
    sides = [set(by_picture.open(name).labels()) for name in SPLITS]
    assert sides[0] & (sides[1] | sides[2])


def test_the_tiny_variant_verifies_strangers(directory):
    config = load("tiny,margin=cosface")
    config.data.update(dir=str(directory), resolution=32)
    data = sources.prepare(config.data)
    task = setup.make_task(config, setup.tokenizer.train(["a"], 300), len(data.class_names or []))
    variables = jax.jit(task.init)(jax.random.key(0))
    assert "head" in variables["params"]
    context = Context(config, task, data, None, parallel.make("jit"), None)
    (evaluate,) = make_evaluators(context).values()
    during = evaluate({"raw": variables}, False).numbers
    assert {name.partition("/")[0] for name in during} == {"validation"}
    found = evaluate({"raw": variables}, True).numbers
    assert during.items() < found.items() and found["test/pairs"] >= 8
    for split in ("validation", "test"):
        assert all(0 <= found[f"{split}/{name}"] <= 1 for name in ("accuracy", "auc", "eer"))


def test_ten_folds_of_the_embedding_are_measured():
    config = load("margin=cosface")
    (evaluator,) = config.evaluators.values()
    assert (evaluator.folds, evaluator.layer) == (10, "embedding")
    assert (config.data.name, config.model.margin.kind) == ("lfw_people", "cosface")


def zipped(path, splits):
    """A zip of emoji with their splits."""
    folder = write_folder(
        path.with_suffix(""),
        {name: encode(plain(n)) for n, name in enumerate(splits)},
        [{"file_name": name, "split": split, "style": "x"} for name, split in splits.items()],
    )
    with zipfile.ZipFile(path, "w") as archive:
        for file in folder.iterdir():
            archive.write(file, file.name)
    return path


def test_emoji_in_two_styles_become_a_folder_of_identities(tmp_path, command):
    ours = {"1f600.png": "train", "1f601.png": "test", "1f602.png": "validation", "a.png": "test"}
    theirs = {"1f602.png": "validation", "1f600.png": "train", "1f601.png": "test"}
    arguments = [
        f"--noto={zipped(tmp_path / 'noto.zip', ours)}",
        f"--blob={zipped(tmp_path / 'blob.zip', theirs)}",
        f"--out={tmp_path / 'pairs'}",
    ]
    outcome = command(prepare.main, *arguments)
    assert outcome.code == 0 and "3 emoji in two styles" in outcome.out
    config = load("tiny,data=folder")
    config.data.update(path=str(tmp_path / "pairs"), dir=str(tmp_path / "data"))
    data = sources.prepare(config.data)
    assert data.class_names == ["1f600", "1f601", "1f602"]
    assert data.splits == {"train": 2, "validation": 2, "test": 2}
    test = [data.open("test")[n] for n in range(2)]
    assert {example["label"] for example in test} == {1}
    assert {example["name"] for example in test} == {"noto/1f601.png", "blob/1f601.png"}
    values = {example["name"][:4]: int(np.mean(example["image"])) for example in test}
    assert values == {"noto": 1, "blob": 2}  # each zip's own picture
    assert "exists" in command(prepare.main, *arguments).sentence


def test_emoji_of_two_splits_are_refused(tmp_path, command):
    one, other = ({"a.png": split} for split in ("train", "test"))
    files = zipped(tmp_path / "one.zip", one), zipped(tmp_path / "other.zip", other)
    outcome = command(
        prepare.main, f"--noto={files[0]}", f"--blob={files[1]}", f"--out={tmp_path / 'p'}"
    )
    assert "'a.png' is in different splits" in outcome.sentence
    assert not (tmp_path / "p").exists()
