"""The evaluator of recognition runs, with a network whose answers are known."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from tests.evaluators.test_make import build, make, one_device
from vision_lang.data import pipeline
from vision_lang.evaluators import classification
from vision_lang.evaluators.context import Context

LOGITS = np.array([[2, 0], [0, 1]], np.float32)  # of dark and of bright pictures


def test_numbers_and_pictures_of_a_network_that_knows_dark_from_bright(tmp_path, monkeypatch):
    context = build(tmp_path, "a dog")
    titles = []
    grid = classification.drawing.grid

    def noted(images, texts, *sizes):
        titles.append((images.mean(axis=(1, 2, 3)) >= 128, texts))
        return grid(images, texts, *sizes)

    monkeypatch.setattr(classification.drawing, "grid", noted)
    bright = lambda x: (x.astype(jnp.float32).mean((1, 2, 3)) >= 128).astype(int)  # noqa: E731
    rows = lambda variables, x: jax.nn.softmax(jnp.asarray(LOGITS)[bright(x)])  # noqa: E731
    task = SimpleNamespace(probabilities=rows)
    parallel = one_device(lambda rows: rows)
    context = dataclasses.replace(context, task=task, parallel=parallel)
    context.config.update(task="recognition", multi_label=False)
    evaluate = make(context, "classification", splits=(), final_splits=("train",), shown=5)
    found = evaluate({"raw": None}, True)

    source = context.data.open("train")
    labels = source.labels()
    said = np.array([source[i]["image"].mean() >= 128 for i in range(len(source))], int)
    assert found.numbers["train/n"] == len(source)
    np.testing.assert_allclose(found.numbers["train/top1"], np.mean(said == labels))
    assert set(found.pictures) == {"confusion/train", "answers/train"}
    [(shown, texts)] = titles
    chosen = np.arange(5) * len(source) // 5
    np.testing.assert_array_equal(shown, said[chosen])
    names = context.data.class_names
    for text, place in zip(texts, chosen, strict=True):
        answer, label = int(said[place]), int(labels[place])
        sure = 100 / (1 + np.exp(-float(LOGITS[answer, answer])))
        right = "" if answer == label else f" (is {names[label]})"
        assert text == f"{names[answer]} {sure:.0f} %{right}"


@pytest.mark.parametrize("flip", [False, True])
def test_a_mirror_image_is_asked_as_well(tmp_path, flip):
    """A network that says 0.2 when it is asked first and 0.6 when it is asked again."""
    context = build(tmp_path, "a dog")
    asked, answers = [], []

    def rows(variables, images):
        asked.append(images)
        first = [0.2, 0.6][(len(asked) - 1) % (1 + flip)]
        return np.tile([first, 1 - first], (len(images), 1))

    def forward(rows):
        def noted(*given):
            answers.append(rows(*given))
            return answers[-1]

        return noted

    parallel = one_device(forward)
    task = SimpleNamespace(probabilities=rows)
    context = dataclasses.replace(context, task=task, parallel=parallel)
    context.config.update(task="recognition", multi_label=False)
    evaluate = make(context, "classification", splits=("train",), final_splits=(), flip=flip)
    evaluate({"raw": None}, False)
    assert len(answers) == 5  # batches of 4 of 18 pictures
    np.testing.assert_allclose(np.array(answers)[..., 0], 0.4 if flip else 0.2)
    if flip:
        np.testing.assert_array_equal(asked[1], asked[0][:, :, ::-1])


LABELS = [[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 0], [1, 1, 1]]
ANSWERS = [[0.9, 0.2, 0.1], [0.4, 0.6, 0.1], [0.7, 0.3, 0.1], [0.1, 0.4, 0.7], [0, 0, 1]]


@dataclasses.dataclass
class Rows:
    """A split of which only the size is asked."""

    size: int

    def __len__(self):
        return self.size

    def only(self, places):
        return Rows(len(places))


def test_several_labels_by_hand(monkeypatch):
    """Of five rows in two batches the last only fills up: its class, c, has no example."""
    batches = [
        {
            "image": np.array(ANSWERS[rows]),
            "labels": np.array(LABELS[rows]),
            "weight": weight,
            "index": np.arange(5)[rows],
        }
        for rows, weight in ((slice(3), np.ones(3)), (slice(3, 5), np.array([1, 0])))
    ]
    asked = {}
    monkeypatch.setattr(pipeline, "eval_batches", lambda *_, **how: asked.update(how) or batches)
    data = SimpleNamespace(
        class_names=["a", "b", "c"], splits=("test",), check=None, open=lambda split: Rows(5)
    )
    monkeypatch.setattr(Context, "pictures", lambda _, rows: np.zeros((len(rows), 2, 2, 3), "u1"))
    own = {"splits": (), "final_splits": ("test",), "batch_size": 4, "flip": False, "shown": 2}
    config = ConfigDict({"task": "recognition", "multi_label": True, "data": {"resolution": 2}})
    task = SimpleNamespace(probabilities=lambda variables, images: images)
    context = Context(config, task, data, None, one_device(lambda rows: rows), None)
    found = classification.make(ConfigDict(own), context)({"raw": None}, True)
    assert asked["multi_label"] and asked["classes"] == 3
    # a: right are the 1st and the 3rd of 0.9, 0.7, 0.4, 0.1; b: the 1st and 3rd of 0.6, 0.4, 0.3.
    precision = (1 + 2 / 3) / 2
    # More likely than not: a, b, a (wrong), c (wrong); two labels are not told.
    micro, macro = 2 * 2 / (4 + 4), (2 * 1 / (2 + 2) + 2 * 1 / (1 + 2) + 0) / 3
    wanted = {"map": precision, "micro_f1": micro, "macro_f1": macro, "n": 4}
    wanted |= {"class/a": precision, "class/b": precision}
    assert found.numbers == {f"test/{name}": pytest.approx(v) for name, v in wanted.items()}
    assert set(found.pictures) == {"answers/test"}
    assert classification.title(np.array(ANSWERS[1]), np.array(LABELS[1]), ["a", "b", "c"]) == (
        "b 60 % (is a, b)"
    )
    assert classification.title(np.zeros(3), np.zeros(3), ["a", "b", "c"]) == "nothing"
