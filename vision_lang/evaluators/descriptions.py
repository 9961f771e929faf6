"""How often a contrastive, clip, captioning or diffusion run picks the right description.

The same question for all, each in its own way (tasks/descriptions.py), so that they stand in one
table. Of data with classes the candidates are the classes' phrases; on the built-in world
`choices` captions of the split that name as many objects, only one of which the picture fits: its
own, and of the others those with most words in common with it.

Numbers per split: `top1`, the share picked right (a tie is none); `top1_n`, of how many pictures;
`choices`, how many candidates each had.
"""

from __future__ import annotations

import functools
from collections import Counter
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from vision_lang.data import presets
from vision_lang.data.builders import shapes as shapes_builder
from vision_lang.data.reading import Source
from vision_lang.errors import InputError
from vision_lang.evaluators.context import Context, Evaluator, Result, Weights
from vision_lang.evaluators.retrieval import fitting
from vision_lang.metrics import classification
from vision_lang.tasks import descriptions
from vision_lang.tasks.descriptions import Candidates, How


class Question(NamedTuple):
    """Pictures and candidates: `which` int [n, K] of the candidates each picture has, the right one
    at `right` [n] (-1: it is not known)."""

    source: Source
    candidates: Candidates
    which: np.ndarray
    right: np.ndarray


def default_config() -> ConfigDict:
    """The fields that `make` reads, for a run whose config has no such evaluator."""
    how = How()
    return ConfigDict(
        {
            "kind": "descriptions",
            "splits": ("validation",),
            "count": 256,
            "final_splits": ("validation", "test"),
            "final_count": 0,
            "batch_size": 32,
            "choices": 8,
            "templates": (),
            "per_token": how.per_token,
            "noises": how.noises,
            "error": how.error,
        }
    )


def make(config: ConfigDict, context: Context) -> Evaluator:
    """config: splits, count (pictures at a period), final_splits, final_count (the same at the end;
    0 = all), batch_size (rows per device), choices (of the built-in world), templates (clip and
    contrastive runs), per_token, noises, error (descriptions.How; the run's seed draws them)."""
    run, parallel = context.config, context.parallel
    how = How(config.per_token, config.noises, config.error, run.seed)
    way = descriptions.make(run.task, context.task, how)
    read = jax.jit(way.read)
    forward = parallel.forward(lambda both, batch: way.scores(*both, *batch))
    wanted = {True: context.present(config.final_splits), False: context.present(config.splits)}
    names = context.data.class_names or []
    if not names and not presets.is_shapes(run.data.name):
        raise InputError(f"The data set '{run.data.name}' has no classes to choose from.")

    @functools.cache  # the same at every period
    def asked(split, count):
        source = context.data.open(split)
        count = min(count or len(source), len(source))
        if not names:
            return of_captions(context, source, count, config.choices)
        found = descriptions.candidates(
            run, context.tokenizer, names, names, templates=config.templates, own=True
        )
        source = source.only(np.arange(count) * len(source) // count)
        labels = source.labels()
        which = np.broadcast_to(np.arange(len(names)), (count, len(names)))
        return Question(source, found, which, np.where(labels < len(names), labels, -1))

    def answers(variables, question):
        """Scores [m, K] and the right ones [m] of the pictures that can be read."""
        table = read(variables, question.candidates)
        scores, right = [], []
        for own, known in context.batches(question.source, config.batch_size):
            rows = np.minimum(known["index"], len(question.right) - 1)
            kept = (known["weight"] > 0) & (question.right[rows] >= 0)
            which = question.which[rows[parallel.own(len(rows))]].astype(np.int32)
            placed = parallel.place((own["image"], which))
            scores.append(forward((variables, table), placed)[kept])
            right.append(question.right[rows][kept])
        return np.concatenate(scores), np.concatenate(right)

    def evaluate(weights: Weights, final: bool) -> Result:
        numbers: dict[str, float] = {}
        for split in wanted[final]:
            question = asked(split, config.final_count if final else config.count)
            scores, answer = answers(context.best(weights), question)
            right, count = classification.top_k(scores, answer, 1)
            new = {"top1": right / max(count, 1), "top1_n": count}
            new["choices"] = question.which.shape[1]
            numbers |= {f"{split}/{name}": value for name, value in new.items()}
        return Result(numbers)

    return evaluate


def of_captions(context: Context, source: Source, count: int, choices: int) -> Question:
    """The built-in world: each of `count` pictures, evenly spaced, with its own caption and those
    others of the split that name as many objects, do not fit it and have most words in common with
    it. Between equals the run's seed and the picture's place decide.

    Raises:
      InputError: a picture has too few of those.
    """
    captions = [texts[0] for texts in source.captions()]
    scenes = shapes_builder.scenes(source)
    objects = np.array([len(scene.objects) for scene in scenes])
    places = np.arange(count) * len(source) // count
    fits = fitting([scenes[place] for place in places], captions)
    words = [Counter(caption.split()) for caption in captions]
    which = np.zeros((count, choices), np.int64)
    for row, place in enumerate(places):
        others = np.flatnonzero(~fits[row] & (objects == objects[place]))
        if len(others) < choices - 1:
            raise InputError(
                f"The split '{source.split}' has {len(others)} captions that could be mistaken for "
                f"that of its picture {place}: choices={choices} is too many."
            )
        shuffled = np.random.default_rng((context.config.seed, place)).permutation(others)
        common = [(words[place] & words[other]).total() for other in shuffled]
        nearest = np.argsort(common, stable=True)[::-1]
        which[row] = [place, *shuffled[nearest[: choices - 1]]]
    length = context.config.data.text_length
    found = descriptions.encode(context.tokenizer, [[t] for t in captions], length, strict=False)
    return Question(source.only(places), found, which, np.zeros(count, np.int64))
