"""Draws from held-out captions of the shapes world and lets the oracle grade the pictures.

Numbers per split: `all_right` over prompts with one and two objects, half each; `all_right_1`,
`_2`, `_3` by the number of objects; `shape`, `colour`, `relation`, ... the shares right over the
same one- and two-object prompts where the attribute is stated; `render_error` (median) and
`render_error_p95` of the same pictures, readable or not; `unreadable`; `n`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from ml_collections import ConfigDict

from vision_lang.errors import InputError
from vision_lang.evaluators import drawing
from vision_lang.evaluators.context import Context, Evaluator, Result, Weights, by_place
from vision_lang.shapes import grammar, oracle
from vision_lang.tasks.diffusion import Sampling

CHUNK = 256  # captions that are read at once
PARTS = ("number", "shape", "colour", "size", "background", "relation")


def make(config: ConfigDict, context: Context) -> Evaluator:
    """config: splits, count (prompts with one or two objects at a period), final_count (the same
    at the end), device_batch."""
    run = context.config
    draw = drawing.drawer(
        context.task, context.parallel, Sampling(**run.sampling), run.seed, config.device_batch
    )

    counts = {True: config.final_count, False: config.count}
    asked = {  # (split, final) -> prompts and their places
        (split, final): choose_prompts(context, split, count)
        for split in config.splits
        for final, count in counts.items()
    }

    def evaluate(weights: Weights, final: bool) -> Result:
        numbers: dict[str, float] = {}
        examples = {}
        for split in config.splits:
            prompts, index = asked[split, final]
            tokens, mask = context.tokenizer.encode_batch(prompts, run.data.text_length)
            labels = np.full(len(prompts), -1, np.int32)
            batches = draw(context.best(weights), tokens, mask, labels, index)
            pictures = (picture for batch in batches for picture in batch)
            grades = [judge(p, text) for p, text in zip(pictures, prompts, strict=True)]
            numbers |= {f"{split}/{name}": value for name, value in summary(grades).items()}
            few = [k for k, row in enumerate(grades) if row["count"] < 3]
            right = [grades[k]["grade"]["all_right"] for k in few]
            examples[f"{split}/all_right"] = by_place(index[few], right)
        return Result(numbers, examples=examples)

    return evaluate


def choose_prompts(context: Context, split: str, count: int) -> tuple[list[str], np.ndarray]:
    """The first count / 2 captions of one and of two objects, and count / 4 of three, with their
    places in the split; no more of it is read.

    Raises:
      InputError: no such split, a caption that is not of the built-in world's grammar, or none of
        one or two objects.
    """
    want = {1: count // 2, 2: count // 2, 3: count // 4}
    prompts, index = [], []
    source = context.data.open(split)
    for start in range(0, len(source), CHUNK):
        places = range(start, min(start + CHUNK, len(source)))
        for place, (text, *_) in zip(places, source.only(np.array(places)).captions(), strict=True):
            objects = _count_objects(text, split)
            if want.get(objects):
                want[objects] -= 1
                prompts.append(text)
                index.append(place)
        if not any(want.values()):
            break
    if want[1] + want[2] == count // 2 * 2:
        raise InputError(
            f"The oracle grades prompts of one and of two objects; of {count} that it should take "
            f"from the split '{split}' there is none."
        )
    return prompts, np.asarray(index, np.int32)


def _count_objects(text: str, split: str) -> int:
    try:
        return len(grammar.parse(text).objects)
    except InputError as error:
        raise InputError(
            f"The oracle of the built-in world cannot read the caption '{text}' of the split "
            f"'{split}': {error} For other data name them by --config=FILE:data=NAME, which leaves "
            "this evaluator out."
        ) from error


def judge(picture: np.ndarray, prompt: str) -> dict[str, Any]:
    """The oracle's verdict on one picture: objects asked for, grade, readable or not, error."""
    description, reading = grammar.parse(prompt), oracle.read(picture)
    return {
        "count": len(description.objects),
        "grade": oracle.grade(reading, description),
        "unreadable": reading.reason is not None,
        "error": oracle.render_error(picture, reading),
    }


def summary(grades: list[dict[str, Any]]) -> dict[str, float]:
    """Shares and medians, see the module's docstring."""
    numbers: dict[str, float] = {}
    share = lambda rows, part: [row["grade"][part] for row in rows if part in row["grade"]]  # noqa: E731
    for count in (1, 2, 3):
        right = share([row for row in grades if row["count"] == count], "all_right")
        if right:
            numbers[f"all_right_{count}"] = float(np.mean(right))
    few = [row for row in grades if row["count"] < 3]
    for part in ("all_right", *PARTS):
        right = share(few, part)
        if right:
            numbers[part] = float(np.mean(right))
    numbers["unreadable"] = float(np.mean([row["unreadable"] for row in few]))
    errors = np.percentile([row["error"] for row in few], [50, 95])
    numbers["render_error"], numbers["render_error_p95"] = map(float, errors)
    numbers["n"] = len(few)
    return numbers
