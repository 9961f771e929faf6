"""What an evaluator cannot do is found when it is made: before the training, not in the middle."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
from ml_collections import ConfigDict

from tests.data.conftest import encode, plain, write_folder
from vision_lang.data import presets, sources, tokenizer
from vision_lang.errors import InputError
from vision_lang.evaluators import make_evaluators
from vision_lang.evaluators.context import Context
from vision_lang.tasks.captioning import Decoding
from vision_lang.tasks.diffusion import Sampling

EVALUATORS = {
    "validation_loss": {"split": "validation", "batch_size": 4},
    "captions": {
        "splits": ("validation",), "final_splits": ("validation", "test"), "count": 4,
        "final_count": 0, "batch_size": 4, "shown": 0,
    },
    "classification": {
        "splits": ("validation",), "final_splits": ("test",), "batch_size": 4, "flip": False,
        "shown": 0,
    },
    "probe": {"layer": "x", "train_split": "train", "splits": ("validation",), "batch_size": 4},
    "reconstruction": {
        "splits": ("validation",), "final_splits": ("validation",), "count": 0, "batch_size": 4,
        "shown": 2,
    },
    "verification": {
        "layer": "x", "splits": ("validation",), "final_splits": ("test",), "batch_size": 4,
    },
    "samples": {"prompts": (), "count": 3, "columns": 3, "device_batch": 4},
    "shapes_oracle": {"splits": ("validation",), "count": 4, "final_count": 8, "device_batch": 4},
}  # fmt: skip


def build(directory, text, length=12):
    """Of a folder of 20 pictures with one text, all in train; no task and no devices."""
    lines = [
        {"file_name": f"{n}.png", "text": text, "label": n % 2, "split": "train"} for n in range(20)
    ]
    files = {f"{n}.png": encode(plain(n)) for n in range(20)}
    data = ConfigDict(presets.fields("folder"))
    data.path = str(write_folder(directory / "pictures", files, lines))
    data.dir, data.text_length = str(directory / "data"), length
    config = ConfigDict({"task": "diffusion", "seed": 0, "data": data, "evaluators": {}})
    config.sampling = ConfigDict(dataclasses.asdict(Sampling()))
    config.decoding = ConfigDict(dataclasses.asdict(Decoding()))
    task, words = SimpleNamespace(condition="text"), tokenizer.train(["a cat", "a dog"], 300)
    way = one_device(lambda rows: rows)
    return Context(config, task, sources.prepare(data), words, way, None)


def one_device(forward):
    """The devices as an evaluator sees them: what is asked of them is known."""
    same = lambda tree: tree  # noqa: E731
    return SimpleNamespace(
        forward=forward, place=same, gather=same, own=slice, devices=1, share=(0, 1), alone=None
    )


@pytest.fixture
def context(tmp_path):
    return build(tmp_path, "a dog")


def make(context, kind, **changes):
    context.config.evaluators = ConfigDict({"mine": {"kind": kind} | EVALUATORS[kind] | changes})
    return make_evaluators(context)["mine"]


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("validation_loss", {"split": "validatoin"}, "split .*'validatoin'.*'validation'"),
        ("captions", {"splits": ("tset",)}, "split .*'tset'"),
        ("captions", {"final_splits": ("test", "test_unseen")}, "split .*'test_unseen'"),
        ("classification", {"splits": ("val",)}, "split .*'val'"),
        ("probe", {"train_split": "trian"}, "split .*'trian'.*'train'"),
        ("probe", {"splits": ("tset",)}, "split .*'tset'"),
        ("reconstruction", {"splits": ("tset",)}, "split .*'tset'"),
        ("verification", {"final_splits": ("tset",)}, "split .*'tset'"),
        ("samples", {"prompts": ("a cat", "a dog " * 6)}, r"a dog.*has \d+ tokens.*room for 10"),
        ("shapes_oracle", {"splits": ("test_unseen",)}, "split .*'test_unseen'"),
        ("shapes_oracle", {}, "caption 'a dog' .*'validation': Unknown word .*:data=NAME"),
    ],
)
def test_a_mistake_is_one_sentence_when_it_is_made(context, kind, changes, message):
    with pytest.raises(InputError, match=rf"^config\.evaluators\.mine: .*{message}"):
        make(context, kind, **changes)


@pytest.mark.parametrize("kind", ["captions", "classification"])
def test_a_test_split_that_is_not_there_is_named_and_left_out(context, caplog, kind):
    evaluate = make(context, kind, final_splits=("test",))
    assert "no split test" in caplog.text
    assert evaluate({"raw": None}, True).numbers == {}


def test_a_field_that_an_older_run_lacks_is_named(context):
    fields = {k: v for k, v in EVALUATORS["classification"].items() if k != "shown"}
    context.config.evaluators = ConfigDict({"mine": {"kind": "classification"} | fields})
    with pytest.raises(InputError, match="config.evaluators.mine lacks a field: .*shown"):
        make_evaluators(context)


def test_the_datas_own_captions_may_be_long(tmp_path):
    """They are cut, as they are in training."""
    make(build(tmp_path, "a dog and a cat", length=3), "samples")


def test_the_oracle_refuses_a_split_without_a_prompt_to_grade(tmp_path):
    three = "three objects: a red square left of a blue triangle, and a yellow circle"
    with pytest.raises(InputError, match="one and of two objects.*'validation'"):
        make(build(tmp_path, three), "shapes_oracle")
