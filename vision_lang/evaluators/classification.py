"""How well a recognition run names the classes of whole splits.

Numbers per split: `top1`, `top5` (where there are more than five classes), `balanced` (the mean of
the classes' accuracies), `ece` (expected calibration error), `majority` (what the most frequent
class alone would get), `n`; at the end also `class/<name>`, each class's accuracy, a picture of the
confusion matrix (a row for each true class, a column for each answer), and one of some examples
with the answers to them.
"""

from __future__ import annotations

import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image, ImageDraw

from vision_lang.data import pipeline
from vision_lang.evaluators import drawing
from vision_lang.evaluators.context import Context, Evaluator, Result, Weights
from vision_lang.metrics import classification

NAMED_CLASSES = 40  # up to so many are named in the picture


def make(config: ConfigDict, context: Context) -> Evaluator:
    """config: splits, final_splits (at the end), batch_size (rows per device), flip (the mean of
    the answers to a picture and to its mirror image counts), shown (examples in the picture)."""
    task, parallel = context.task, context.parallel
    names = context.data.class_names or []

    def rows(variables, images):
        answer = lambda x: jax.nn.softmax(task.logits(variables, x))  # noqa: E731
        found = answer(images)
        return (found + answer(images[:, :, ::-1])) / 2 if config.flip else found

    forward = parallel.forward(rows)
    wanted = {True: context.present(config.final_splits), False: context.present(config.splits)}

    def probabilities(variables, source):
        """Answers [N, C], labels [N] and places in the split [N] of the examples that have both,
        and pictures, evenly spaced over them, by their places."""
        batches = pipeline.eval_batches(
            source, context.encode, data=context.config.data,
            batch_size=config.batch_size * parallel.devices, classes=context.classes,
        )  # fmt: skip
        chosen = np.arange(config.shown) * len(source) // max(config.shown, 1)
        answers, labels, places, pictures = [], [], [], {}
        for batch in batches:
            kept = batch["weight"] > 0
            answers.append(np.asarray(forward(variables, parallel.place(batch["image"])))[kept])
            labels.append(batch["label"][kept])
            places.append(batch["index"][kept])
            for k in np.flatnonzero(kept & np.isin(batch["index"], chosen)):
                pictures[int(batch["index"][k])] = batch["image"][k]
        return *map(np.concatenate, (answers, labels, places)), pictures

    def evaluate(weights: Weights, final: bool) -> Result:
        numbers: dict[str, float] = {}
        pictures = {}
        for split in wanted[final]:
            source = context.data.open(split)
            found, labels, places, shown = probabilities(context.best(weights), source)
            table = classification.confusion_matrix(found.argmax(-1), labels, len(names))
            new = summary(found, labels, table)
            if final:
                shares = classification.per_class_accuracy(table)
                pairs = zip(names, shares, strict=True)
                new |= {f"class/{n.replace('/', '-')}": float(a) for n, a in pairs if a == a}
                pictures[f"confusion/{split}"] = confusion_picture(table, names)
            if final and shown:
                rows = np.searchsorted(places, list(shown))
                said = [title(found[row], labels[row], names) for row in rows]
                zoom = max(1, 128 // context.config.data.resolution)
                page = drawing.grid(np.stack(list(shown.values())), said, 4, zoom)
                pictures[f"answers/{split}"] = page
            numbers |= {f"{split}/{name}": value for name, value in new.items()}
        return Result(numbers, pictures)

    return evaluate


def summary(found: np.ndarray, labels: np.ndarray, table: np.ndarray) -> dict[str, float]:
    """The numbers of one split, see the module's docstring.

    Args:
      found: probabilities [N, C]; labels: [N]; table: their confusion matrix [C, C].
    """
    ranks = {"top1": 1} | ({"top5": 5} if found.shape[1] > 5 else {})
    numbers = {}
    for name, k in ranks.items():
        right, count = classification.top_k(found, labels, k)
        numbers[name] = right / count
    numbers["balanced"] = classification.balanced_accuracy(table)
    numbers["ece"] = classification.calibration(found, labels).error
    numbers["majority"] = float(table.sum(axis=1).max() / table.sum())
    numbers["n"] = len(labels)
    return numbers


def title(found: np.ndarray, label: int, names: list[str]) -> str:
    """The answer to one example (probabilities [C]), and what is right where the answer is not."""
    said = int(found.argmax())
    text = f"{names[said]} {100 * found[said]:.0f} %"
    return text if said == label else f"{text} (is {names[label]})"


def confusion_picture(table: np.ndarray, names: list[str]) -> np.ndarray:
    """Shares of each row of the confusion matrix as shades of blue, uint8 [H, W, 3]."""
    shares = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    dark = np.array([8, 48, 107]) - 255.0
    cell = max(1, 480 // len(table))
    picture = np.rint(255 + np.sqrt(shares)[..., None] * dark).astype(np.uint8)
    picture = picture.repeat(cell, 0).repeat(cell, 1)
    if len(names) > NAMED_CLASSES:
        return picture
    margin = 6 + 6 * min(24, max(map(len, names)))
    page = Image.new("RGB", (margin + picture.shape[1], picture.shape[0]), (255, 255, 255))
    page.paste(Image.fromarray(picture), (margin, 0))
    pen = ImageDraw.Draw(page)
    for row, name in enumerate(names):
        pen.text((2, row * cell + cell // 2 - 6), name[:24], fill=(20, 20, 20), font_size=11)
        for column, share in enumerate(shares[row]):
            if share >= 0.005 and cell >= 24:
                shade = (255, 255, 255) if share > 0.3 else (20, 20, 20)
                place = (margin + column * cell + 4, row * cell + cell // 2 - 6)
                pen.text(place, f"{100 * share:.0f}", fill=shade, font_size=11)
    return np.asarray(page)
