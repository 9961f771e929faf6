"""The evaluator of recognition runs, with a network whose answers are known."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np

from tests.evaluators.test_make import build, make
from vision_lang.evaluators import classification

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
    task = SimpleNamespace(logits=lambda variables, x: jnp.asarray(LOGITS)[bright(x)])
    parallel = SimpleNamespace(forward=lambda rows: rows, place=lambda x: x, devices=1)
    context = dataclasses.replace(context, task=task, parallel=parallel)
    context.config.task = "recognition"
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
