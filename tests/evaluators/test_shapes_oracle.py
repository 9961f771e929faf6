"""The oracle evaluator: right pictures are all right, others are not; which prompts it takes."""

from __future__ import annotations

import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import diffusion
from vision_lang.data import sources, tokenizer
from vision_lang.evaluators import drawing, shapes_oracle
from vision_lang.evaluators.context import Context
from vision_lang.shapes import grammar

COUNT = 16


@pytest.fixture(scope="module")
def context(trained):
    config = diffusion.get_config("tiny").unlock()
    config.data.dir = str(trained.parent / "data")
    words = tokenizer.load(trained / "tokenizer.json")
    return Context(config, None, sources.prepare(config.data), words, None, None)


def results(context, monkeypatch, picture):
    """The evaluator's numbers on "test", with picture(place in the split) in place of drawing."""
    asked = []

    def draw(variables, tokens, mask, labels, places):
        asked.extend(places)
        for part in np.array_split(places, 3):
            yield np.stack([picture(int(place)) for place in part])

    monkeypatch.setattr(drawing, "drawer", lambda *arguments: draw)
    fields = {"splits": ("test",), "count": 4, "final_count": COUNT, "device_batch": 8}
    evaluate = shapes_oracle.make(ConfigDict(fields), context)
    return evaluate({"raw": None}, True).numbers, asked


def test_the_real_pictures_are_all_right(context, monkeypatch):
    source = context.data.open("test")
    numbers, asked = results(context, monkeypatch, lambda place: source[place]["image"])
    captions = [source.captions()[place][0] for place in asked]
    objects = [len(grammar.parse(text).objects) for text in captions]
    assert [objects.count(n) for n in (1, 2, 3)] == [COUNT // 2, COUNT // 2, COUNT // 4]
    for name in ("all_right", "all_right_1", "all_right_2", "all_right_3", "shape", "colour"):
        assert numbers[f"test/{name}"] == 1.0, name
    assert numbers["test/relation"] == numbers["test/number"] == 1.0
    assert numbers["test/n"] == COUNT  # one- and two-object prompts
    assert numbers["test/unreadable"] == 0
    assert numbers["test/render_error"] < 0.01


def test_other_pictures_are_not(context, monkeypatch):
    source = context.data.open("test")
    other = lambda place: source[(place + 1) % len(source)]["image"]  # noqa: E731
    numbers, _ = results(context, monkeypatch, other)
    assert numbers["test/all_right"] < 0.2 and numbers["test/render_error"] < 0.01
    rng = np.random.default_rng(0)
    numbers, _ = results(
        context, monkeypatch, lambda place: rng.integers(0, 256, (32, 32, 3), np.uint8)
    )
    assert numbers["test/all_right"] == 0 and numbers["test/unreadable"] == 1
    assert numbers["test/render_error"] > 0.1


def test_the_summary_counts_what_was_stated():
    rows = [  # objects asked for, grade, unreadable, error
        (1, {"all_right": True, "shape": True}, False, 0.0),
        (2, {"all_right": False, "shape": True, "size": False}, False, 0.1),
        (2, {"all_right": True, "shape": True, "size": True}, False, 0.3),
        (1, {"all_right": False, "shape": False}, True, 1.0),
        (3, {"all_right": False, "shape": False}, True, 9.0),
    ]
    names = ("count", "grade", "unreadable", "error")
    grades = [dict(zip(names, row, strict=True)) for row in rows]
    numbers = shapes_oracle.summary(grades)
    assert numbers["all_right"] == 0.5 and numbers["all_right_3"] == 0
    assert (numbers["all_right_1"], numbers["all_right_2"]) == (0.5, 0.5)
    assert (numbers["shape"], numbers["size"]) == (0.75, 0.5) and "relation" not in numbers
    assert (numbers["unreadable"], numbers["n"]) == (0.25, 4)
    assert numbers["render_error"] == pytest.approx(0.2)
