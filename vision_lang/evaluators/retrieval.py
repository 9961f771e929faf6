"""How well a contrastive or clip run finds pictures by their texts and texts by their pictures.

Numbers per split (metrics/retrieval.py): `t2i_recall1`, `_recall5`, `_recall10`, `t2i_median_rank`,
the same as `i2t_...`, and `n`, the number of pictures. On the built-in world the pictures are the
first whose captions state different things, and a hit is any picture that a caption fits; elsewhere
it is the text's own, and every text of a picture counts. Pictures that cannot be read are left out.
"""

from __future__ import annotations

import functools

import numpy as np
from ml_collections import ConfigDict

from vision_lang.data import presets
from vision_lang.data.builders import shapes as shapes_builder
from vision_lang.evaluators.batches import batched
from vision_lang.evaluators.context import Context, Evaluator, Result, Weights, by_place
from vision_lang.metrics import retrieval
from vision_lang.shapes import grammar, oracle
from vision_lang.shapes.scene import Scene


def make(config: ConfigDict, context: Context) -> Evaluator:
    """config: splits, final_splits (at the end), count (pictures; 0 = all), batch_size (rows per
    device)."""
    task, parallel, run = context.task, context.parallel, context.config
    shapes = presets.is_shapes(run.data.name)
    of_image = parallel.forward(lambda variables, x: task.embed_images(variables, x))
    embed = lambda variables, x: task.embed_texts(variables, *x)  # noqa: E731
    of_text = batched(parallel, embed, config.batch_size)
    wanted = {True: context.present(config.final_splits), False: context.present(config.splits)}

    def images(variables, source):
        batches = context.batches(source, config.batch_size)
        found = [of_image(variables, parallel.place(own["image"])) for own, _ in batches]
        return np.concatenate(found)[: len(source)]

    def texts(variables, captions):
        words = context.tokenizer.encode_batch(captions, run.data.text_length)
        return np.concatenate(list(of_text(variables, words)))

    @functools.cache  # the same at every period
    def asked(split):
        """(the pictures, all of their texts, what says which fit which)."""
        source = context.data.open(split)
        captions = source.captions()
        chosen = choose_pictures(captions, config.count, shapes)
        batches = context.batches(source.only(chosen), config.batch_size)
        readable = np.concatenate([known["weight"] > 0 for _, known in batches])
        chosen = chosen[readable[: len(chosen)]]
        source, captions = source.only(chosen), [captions[i] for i in chosen]
        every = [text for own in captions for text in own]
        if shapes:
            return source, every, {"satisfies": fitting(shapes_builder.scenes(source), every)}
        own = np.repeat(np.arange(len(chosen)), [len(several) for several in captions])
        return source, every, {"image_of_text": own}

    def evaluate(weights: Weights, final: bool) -> Result:
        variables = context.best(weights)
        numbers: dict[str, float] = {}
        examples = {}
        for split in wanted[final]:
            source, every, right = asked(split)
            ranks = retrieval.ranks(images(variables, source), texts(variables, every), **right)
            numbers[f"{split}/n"] = len(source)
            for way, found in ranks.items():
                new = retrieval.summary(found, way)
                numbers |= {f"{split}/{name}": value for name, value in new.items()}
                examples[f"{split}/{way}_recall1"] = by_place(range(len(found)), found <= 1)
        return Result(numbers, examples=examples)

    return evaluate


def choose_pictures(captions: list[tuple[str, ...]], count: int, shapes: bool) -> np.ndarray:
    """Places of the pictures that are searched: the first, of the built-in world the first whose
    captions state something that no other's does."""
    places = range(len(captions))
    if shapes:
        first = {grammar.meaning(captions[i][0]): i for i in reversed(places)}
        places = sorted(first.values())  # type: ignore[assignment]
    return np.asarray(list(places)[: count or None], np.int64)


def fitting(scenes: list[Scene], captions: list[str]) -> np.ndarray:
    """Which scenes of the built-in world fit which captions, bool [N, M]."""
    stated = [grammar.parse(text) for text in captions]
    kinds = [sorted((o.shape, o.colour) for o in one.objects) for one in stated]
    table = np.zeros((len(scenes), len(captions)), bool)
    for row, scene in enumerate(scenes):
        reading = oracle.reading_of(scene)
        kind = sorted((o.shape, o.colour) for o in scene.objects)
        for column in (k for k, other in enumerate(kinds) if other == kind):
            table[row, column] = oracle.grade(reading, stated[column])["all_right"]
    return table
