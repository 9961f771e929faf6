"""Which question is asked by description, of classes and of the built-in world, and what counts."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import pytest

from configs import captioning
from tests.evaluators import test_make
from vision_lang.data import sources, tokenizer
from vision_lang.data.builders import shapes
from vision_lang.errors import InputError
from vision_lang.evaluators import descriptions
from vision_lang.evaluators.context import Context
from vision_lang.shapes import batteries, grammar
from vision_lang.tasks.descriptions import Way


def test_classes_of_a_split(tmp_path, monkeypatch):
    """20 pictures, each of the grey that is its number, of classes 0 and 1 in turn. The fake way is
    right about the first eleven."""
    built = test_make.build(tmp_path, "a dog")
    built.config.data.resolution = 8
    built.config.task = "captioning"
    context = dataclasses.replace(built, parallel=test_make.one_device(lambda rows: rows))
    read = []

    def scores(variables, table, images, which):
        number = images[:, 0, 0, :1].astype(int)
        right = which == number % 2
        return np.where(number < 11, right, ~right).astype(np.float32)

    def way(name, task, how):
        return Way(lambda variables, candidates: read.append(candidates.tokens.shape), scores)

    monkeypatch.setattr(descriptions.descriptions, "make", way)
    monkeypatch.setattr(descriptions.jax, "jit", lambda function: function)
    for size in (4, 7):
        config = descriptions.default_config()
        config.update(batch_size=size, final_splits=("train", "validation"))
        numbers = descriptions.make(config, context)({"raw": None}, True).numbers
        sizes = {split: numbers[f"{split}/top1_n"] for split in ("train", "validation")}
        assert sum(sizes.values()) == 20 and numbers["train/choices"] == 2
        right = sum(numbers[f"{split}/top1"] * size for split, size in sizes.items())
        assert right == pytest.approx(11)
    assert read[0] == (2, 1, context.config.data.text_length)


def test_captions_of_the_built_in_world(trained):
    """Each picture's own caption is the first; the others name as many objects and are not true."""
    config = captioning.get_config("tiny").unlock()
    config.data.dir = str(trained.parent / "data")
    words = tokenizer.load(trained / "tokenizer.json")
    context = Context(config, None, sources.prepare(config.data), words, None, load=None)
    source = context.data.open("test")
    asked = descriptions.of_captions(context, source, 12, 4)
    captions = [texts[0] for texts in source.captions()]
    for row, scene in enumerate(shapes.scenes(asked.source)):
        own, *others = (grammar.parse(captions[i]) for i in asked.which[row])
        assert batteries.says(own, scene)
        assert not any(batteries.says(other, scene) for other in others)
        assert {len(other.objects) for other in others} == {len(scene.objects)}
        assert len(set(asked.which[row])) == 4
        left = [
            place
            for place, text in enumerate(captions)
            if place not in asked.which[row]
            and len(grammar.parse(text).objects) == len(scene.objects)
            and not batteries.says(grammar.parse(text), scene)
        ]
        common = [
            (Counter(captions[i].split()) & Counter(captions[asked.which[row][0]].split())).total()
            for i in (*asked.which[row][1:], *left)
        ]
        assert min(common[:3]) >= max(common[3:])
    np.testing.assert_array_equal(asked.right, 0)
    length = config.data.text_length
    np.testing.assert_array_equal(
        asked.candidates.tokens[:, 0], words.encode_batch(captions, length)[0]
    )
    few = descriptions.of_captions(context, source, 6, 4)  # every other picture of the twelve
    np.testing.assert_array_equal(few.which, asked.which[::2])
    with pytest.raises(InputError, match="choices=100 is too many"):
        descriptions.of_captions(context, source, 12, 100)
