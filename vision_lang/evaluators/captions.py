"""How well a captioning run describes whole splits.

Numbers per split: `bleu1` ... `bleu4`, `rouge_l`, `cider` (CIDEr-D, from 0 to 10) against all texts
of each picture, as the usual evaluation prints them (metrics/caption); `length`, the mean number of
tokens; `n`. On the built-in world also `scene_right`: the text, read back by the grammar, says
nothing of the scene that is not so and leaves nothing out that every caption tells; and the same
by the number of objects, `scene_right_1`, `_2`, `_3`. A picture shows some with their texts.
"""

from __future__ import annotations

import numpy as np
from ml_collections import ConfigDict

from vision_lang import keys as random_keys
from vision_lang.data import presets
from vision_lang.data.builders import shapes as shapes_builder
from vision_lang.errors import InputError
from vision_lang.evaluators import drawing
from vision_lang.evaluators.context import Context, Evaluator, Result, Weights, by_place
from vision_lang.metrics import caption
from vision_lang.shapes import grammar, oracle
from vision_lang.shapes.scene import Scene
from vision_lang.tasks.captioning import Decoding

NAMES = {"ROUGE_L": "rouge_l", "CIDEr": "cider"} | {f"Bleu_{n}": f"bleu{n}" for n in range(1, 5)}


def make(config: ConfigDict, context: Context) -> Evaluator:
    """config: splits, count (pictures at a period), final_splits, final_count (the same at the end;
    0 = all), batch_size (rows per device), shown (pictures with their captions)."""
    task, parallel, run = context.task, context.parallel, context.config
    how = Decoding(**run.decoding)
    wanted = {True: context.present(config.final_splits), False: context.present(config.splits)}
    shapes = presets.is_shapes(run.data.name)

    def rows(variables, batch):
        keys = random_keys.per_example(random_keys.make(run.seed, "captions"), batch["index"])
        found = task.describe(variables, batch["image"], keys, how)
        return {"tokens": found.tokens[:, 0], "lengths": found.lengths[:, 0]}

    forward = parallel.forward(rows)

    def describe(variables, source):
        """(rows that could be read, texts, token counts)."""
        read: list[int] = []
        texts: list[str] = []
        lengths: list[int] = []
        for own, known in context.batches(source, config.batch_size):
            found = forward(variables, parallel.place(own))
            for k in np.flatnonzero(known["weight"] > 0):
                read.append(known["index"][k])
                texts.append(context.tokenizer.decode(found["tokens"][k, : found["lengths"][k]]))
                lengths.append(int(found["lengths"][k]))
        return np.array(read), texts, lengths

    def evaluate(weights: Weights, final: bool) -> Result:
        numbers: dict[str, float] = {}
        examples = {}
        shown = {}
        for split in wanted[final]:
            source = context.data.open(split)
            count = (config.final_count if final else config.count) or len(source)
            count = min(count, len(source))
            chosen = np.arange(count) * len(source) // count
            source = source.only(chosen)
            read, texts, lengths = describe(context.best(weights), source)
            source, places = source.only(read), chosen[read]
            scores, each = caption.score_each(texts, source.captions())
            examples[f"{split}/cider"] = by_place(places, each["CIDEr"])
            new = {ours: scores[theirs] for theirs, ours in NAMES.items()}
            new |= {"length": float(np.mean(lengths)), "n": len(texts)}
            if shapes:
                scenes = shapes_builder.scenes(source)
                right = [is_right(*one) for one in zip(texts, scenes, strict=True)]
                new |= shares_right(right, scenes)
                examples[f"{split}/scene_right"] = by_place(places, right)
            numbers |= {f"{split}/{name}": value for name, value in new.items()}
            if config.shown and texts:
                pictures = context.pictures(source.only(np.arange(len(texts))[: config.shown]))
                page = drawing.grid(pictures, texts[: len(pictures)], 4, 4)
                shown[f"captions/{split}"] = page
        return Result(numbers, shown, examples=examples)

    return evaluate


def shares_right(each: list[bool], scenes: list[Scene]) -> dict[str, float]:
    """The shares of scenes that are described right, see the module's docstring."""
    right = np.array(each)
    counts = np.array([len(scene.objects) for scene in scenes])
    by_count = {f"scene_right_{n}": right[counts == n] for n in (1, 2, 3)}
    found = {name: float(values.mean()) for name, values in by_count.items() if len(values)}
    return {"scene_right": float(right.mean())} | found


def is_right(text: str, scene: Scene) -> bool:
    """Whether a text describes a scene: everything that it states holds, and it states the number,
    every shape and colour, and of several objects how two of them stand to each other."""
    try:
        stated = grammar.parse(text)
    except InputError:
        return False
    grades = oracle.grade(oracle.reading_of(scene), stated)
    return grades["all_right"] and (len(scene.objects) == 1 or bool(stated.relations))
