"""How well a recognition run names the classes of whole splits.

Numbers per split: `top1`, `top5` (where there are more than five classes), `balanced` (the mean of
the classes' accuracies), `ece` (expected calibration error), `majority` (what the most frequent
class alone would get), `n`; at the end also `class/<name>`, each class's accuracy, a picture of the
confusion matrix (a row for each true class, a column for each answer), and one of some examples
with the answers to them.

Where an example may have several labels: `map` (the mean of the classes' average precisions; those
without an example are left out), `micro_f1` and `macro_f1` of the labels that are more likely than
not, `n`; at the end `class/<name>`, each class's average precision, and the examples.
"""

from __future__ import annotations

import numpy as np
from ml_collections import ConfigDict
from PIL import Image, ImageDraw

from vision_lang.evaluators import drawing
from vision_lang.evaluators.context import Context, Evaluator, Result, Weights, by_place
from vision_lang.metrics import classification

NAMED_CLASSES = 40  # up to so many are named in the picture


def make(config: ConfigDict, context: Context) -> Evaluator:
    """config: splits, final_splits (at the end), batch_size (rows per device), flip (the mean of
    the answers to a picture and to its mirror image counts), shown (examples in the picture)."""
    task, parallel = context.task, context.parallel
    names = context.data.class_names or []
    shown_count = config.shown

    def rows(variables, images):
        answer = lambda x: task.probabilities(variables, x)  # noqa: E731
        found = answer(images)
        return (found + answer(images[:, :, ::-1])) / 2 if config.flip else found

    forward = parallel.forward(rows)
    truth = "labels" if context.multi_label else "label"
    wanted = {True: context.present(config.final_splits), False: context.present(config.splits)}

    def probabilities(variables, source):
        """Answers [N, C], labels ([N] or [N, C]) and places in the split [N] of the examples that
        have both."""
        answers, labels, places = [], [], []
        for own, known in context.batches(source, config.batch_size, as_learned=True):
            kept = known["weight"] > 0
            answers.append(forward(variables, parallel.place(own["image"]))[kept])
            labels.append(known[truth][kept])
            places.append(known["index"][kept])
        return map(np.concatenate, (answers, labels, places))

    def evaluate(weights: Weights, final: bool) -> Result:
        numbers: dict[str, float] = {}
        pictures, examples = {}, {}
        for split in wanted[final]:
            source = context.data.open(split)
            found, labels, places = probabilities(context.best(weights), source)
            if context.multi_label:
                new, shares = summary_of_several(found, labels)
            else:
                table = classification.confusion_matrix(found.argmax(-1), labels, len(names))
                new = summary(found, labels, table)
                shares = classification.per_class_accuracy(table)
                right = classification.hits(found, labels, 1)
                examples[f"{split}/top1"] = by_place(places, right)
                if final:
                    pictures[f"confusion/{split}"] = confusion_picture(table, names)
            if final:
                pairs = zip(names, shares, strict=True)
                new |= {f"class/{n.replace('/', '-')}": float(a) for n, a in pairs if a == a}
            chosen = np.arange(shown_count) * len(source) // max(shown_count, 1)  # evenly spaced
            rows = np.flatnonzero(np.isin(places, chosen))
            if final and len(rows):
                titles = [title(found[row], labels[row], names) for row in rows]
                zoom = max(1, 128 // context.config.data.resolution)
                page = drawing.grid(context.pictures(source.only(places[rows])), titles, 4, zoom)
                pictures[f"answers/{split}"] = page
            numbers |= {f"{split}/{name}": value for name, value in new.items()}
        return Result(numbers, pictures, examples=examples)

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


def title(found: np.ndarray, label: np.ndarray, names: list[str]) -> str:
    """The answer to one example, and what is right where the answer is not.

    Args:
      found: probabilities [C]; label: its class [], or 0 and 1 for each class [C].
    """
    if label.ndim:
        said, right = found > 0.5, label > 0.5
    else:
        said, right = (np.arange(len(found)) == k for k in (found.argmax(), label))
    sure = [f"{names[k]} {100 * found[k]:.0f} %" for k in np.flatnonzero(said)]
    text = ", ".join(sure) or "nothing"
    if (said == right).all():
        return text
    return f"{text} (is {', '.join(names[k] for k in np.flatnonzero(right)) or 'nothing'})"


def summary_of_several(
    found: np.ndarray, labels: np.ndarray
) -> tuple[dict[str, float], np.ndarray]:
    """The numbers of one split, and each class's average precision [C], NaN without an example.

    Args:
      found: probabilities [N, C]; labels: 0 or 1, [N, C].
    """
    mean, each = classification.mean_average_precision(found, labels)
    micro, macro = classification.f1(found > 0.5, labels)
    return {"map": mean, "micro_f1": micro, "macro_f1": macro, "n": len(labels)}, each


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
