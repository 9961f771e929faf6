"""Drawing pictures from conditions, in a fixed device batch, and laying them out in a grid.

Image k depends on its own condition and number alone: the batch always has the same shape, rows
that nobody asked for are padding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from vision_lang import keys as random_keys
from vision_lang.evaluators.batches import batched
from vision_lang.tasks.diffusion import Diffusion, Sampling, to_uint8

# (variables, tokens [N, L], mask [N, L], label [N], number [N]) -> uint8 pictures, batch by batch
Draw = Callable[..., Iterator[np.ndarray]]


def drawer(
    task: Diffusion, parallel: Any, sampling: Sampling, seed: int, device_batch: int
) -> Draw:
    """Returns a function that draws one picture per condition.

    Args:
      seed: with an image's number it decides the image's noise, and nothing else does.
      device_batch: rows per device of the compiled program.
    """

    def rows(variables, batch):
        keys = random_keys.per_example(random_keys.make(seed, "samples"), batch["number"])
        condition = task.make_condition(batch["tokens"], batch["mask"], batch["label"])
        return to_uint8(task.sample(variables, condition, keys, sampling))

    run = batched(parallel, rows, device_batch)

    def draw(variables, tokens, mask, label, number) -> Iterator[np.ndarray]:
        return run(variables, {"tokens": tokens, "mask": mask, "label": label, "number": number})

    return draw


def grid(images: np.ndarray, titles: Sequence[str], columns: int, zoom: int = 1) -> np.ndarray:
    """Lays out uint8 [N, H, W, 3] row by row with a title over each; returns uint8 [H', W', 3]."""
    side = max(images.shape[1] * zoom, 96)
    lines = [_wrap(title, side // 6) for title in titles]
    head = 11 * max(len(text.split("\n")) for text in lines) + 4
    rows = -(-len(images) // columns)
    page = Image.new(
        "RGB", (columns * (side + 6) + 6, rows * (side + head + 4) + 4), (250, 250, 250)
    )
    pen = ImageDraw.Draw(page)
    for k, (picture, text) in enumerate(zip(images, lines, strict=True)):
        x, y = 6 + k % columns * (side + 6), 4 + k // columns * (side + head + 4)
        pen.multiline_text((x, y), text, fill=(20, 20, 20), spacing=1, font_size=10)
        page.paste(
            Image.fromarray(picture).resize((side, side), Image.Resampling.NEAREST), (x, y + head)
        )
    return np.asarray(page)


def _wrap(text: str, width: int) -> str:
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines[:6])
