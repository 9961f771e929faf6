"""What other runs say of the pictures that a diffusion run draws for the prompts of a split.

The pictures of a split are drawn once, one for each of `count` examples that are spread evenly over
it, from its first text or its label, and shown to every judge that is named: evaluators/judges.py
has the judges and their numbers. Numbers also: `generated`, how many were drawn; where some are
shown, `nearest`, the mean distance of a sample to the nearest training picture (squared difference
of pixels on [0, 1]), and `nearest_real`, that of the real pictures of the same examples: samples
that lie much nearer than those were memorised. A picture then shows some beside what is nearest.

A finished run is judged by `python -m vision_lang.evaluate --run=RUN --classifier=RUN2` and so on.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from ml_collections import ConfigDict

from vision_lang.errors import InputError
from vision_lang.evaluators import drawing, memorised
from vision_lang.evaluators import judges as judging
from vision_lang.evaluators.context import Context, Evaluator, Result, Weights
from vision_lang.evaluators.judges import JUDGES, Asked
from vision_lang.tasks.diffusion import Sampling


@dataclass(frozen=True)
class Generation:
    """config.evaluators.generation.

    splits, count: what is drawn at a period, 0 = as many as there are; final_splits, final_count:
      the same at the end. device_batch: rows per device.
    features, captioner, matcher, classifier: 'RUN[@step][:ema|raw]' that judges; '' = none does.
    layer: of the run of `features`; '' = the last one before its logits. allow_few: accept fewer
      pictures than it has dimensions, for a Frechet distance that is biased upwards.
    shown: pictures shown beside the nearest training picture; 0: nothing is compared with training.
    """

    kind: str = "generation"
    splits: tuple[str, ...] = ()
    count: int = 256
    final_splits: tuple[str, ...] = ("test",)
    final_count: int = 1_000
    device_batch: int = 32
    features: str = ""
    layer: str = ""
    allow_few: bool = False
    captioner: str = ""
    matcher: str = ""
    classifier: str = ""
    shown: int = 0


def make(config: ConfigDict, context: Context) -> Evaluator:
    """config: see `Generation`."""
    named = [field for field in JUDGES if config[field]]
    if not named and not config.shown:
        return lambda weights, final: Result({})
    run = context.config
    if run.task != "diffusion":
        raise InputError(f"Judges want pictures that were drawn; this is a {run.task} run.")
    draw = drawing.drawer(
        context.task, context.parallel, Sampling(**run.sampling), run.seed, config.device_batch
    )
    wanted = {True: context.present(config.final_splits), False: context.present(config.splits)}
    counts = {True: config.final_count, False: config.count}
    sizes = [
        len(_places(context, s, counts[end])) for end, several in wanted.items() for s in several
    ]
    judges, notes = [], {}
    for field in named if sizes else ():
        judge, notes[field] = judging.make(field, config, context, min(sizes))
        judges.append(judge)
    ask = functools.cache(functools.partial(choose, context))  # the same at every period

    def evaluate(weights: Weights, final: bool) -> Result:
        numbers: dict[str, float] = {}
        shown = {}
        for split in wanted[final]:
            asked = ask(split, counts[final])
            tokens, mask = context.tokenizer.encode_batch(asked.prompts, run.data.text_length)
            batches = draw(context.best(weights), tokens, mask, asked.labels, asked.number)
            pictures = np.concatenate(list(batches))
            new: dict[str, float] = {"generated": len(pictures)}
            for judge in judges:
                new |= judge(asked, pictures, final)
            if config.shown:
                found, page = beside_training(context, asked, pictures, config.shown)
                new, shown[f"nearest/{split}"] = new | found, page
            numbers |= {f"{split}/{name}": value for name, value in new.items()}
        return Result(numbers, shown, notes if numbers else {})

    return evaluate


def choose(context: Context, split: str, count: int) -> Asked:
    """`count` examples (0: all), evenly spaced over a split, but for those that cannot be read, and
    of a run that draws from labels those without one.

    Raises:
      InputError: none is left.
    """
    source, places = context.data.open(split), _places(context, split, count)
    batches = list(context.read(source.only(places)))
    real, label, weight = (
        np.concatenate([batch[name] for batch in batches]) for name in ("image", "label", "weight")
    )
    by_label = context.task.condition == "label"
    kept = (weight > 0) & ((label >= 0) | (not by_label))
    if not kept.any():
        wanted = "has a class and can" if by_label else "can"
        raise InputError(f"None of {len(places)} examples of the split '{split}' {wanted} be read.")
    places, labels = places[kept], label[kept]
    if by_label:
        prompts = [source.phrases[k] for k in labels]
    else:
        prompts = [texts[0] for texts in source.only(places).captions()]
    return Asked(split, places.astype(np.int32), prompts, labels, real[kept])


def _places(context: Context, split: str, count: int) -> np.ndarray:
    size = len(context.data.open(split))
    count = min(count or size, size)
    return np.arange(count) * size // count


def beside_training(
    context: Context, asked: Asked, pictures: np.ndarray, shown: int
) -> tuple[dict[str, float], np.ndarray]:
    """How near to training the pictures and the real ones are, and a page of the first `shown`."""
    train = context.data.open("train")
    near = memorised.nearest(pictures, context.read(train))
    near_real = memorised.nearest(asked.real, context.read(train))
    numbers = {
        "nearest": float(near.distance.mean()),
        "nearest_real": float(near_real.distance.mean()),
    }
    first = [x[:shown] for x in (asked.real, pictures[:, None], near.pictures[:, None])]
    return numbers, memorised.page(asked.prompts[:shown], *first)
