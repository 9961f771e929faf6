"""Other runs that judge what a diffusion run has drawn: a row of JUDGES each.

A judge sees pictures as its own run reads them: brought from the resolution at which they were
drawn to its own (data/augment.py, by its data.crop; FID's Inception resizes them in its own way).
Real pictures that they are compared with go the same way, through the resolution of the run that is
judged.

Numbers, NET being the network and layer (`vgg11_pool5`), N the pictures drawn:

| judge        | a run of    | numbers                                                             |
|--------------|-------------|---------------------------------------------------------------------|
| `features`   | all but     | `fd_NET`, `kd_NET` (Frechet and kernel distance), `precision_NET`,  |
|              | diffusion   | `recall_NET`, `density_NET`, `coverage_NET`, against the whole      |
|              |             | split; kd over subsets of 1,000, or of N where there are fewer. By  |
|              |             | FID's own network and weights the first two are `fid` and `kid`     |
| `captioner`  | captioning  | `cycle_bleu4`, `cycle_cider`: its description of a picture against  |
|              |             | the prompt; on the built-in world `cycle_scene_right`, the share    |
|              |             | that tells of the prompt's objects and contradicts it in nothing    |
| `matcher`    | contrastive | `match`, the mean cosine of picture and prompt; `match_real`, the   |
|              |             | same of the real pictures of these prompts                          |
|              | clip        | `clip_score`, `clip_score_real`: the same, times 100 and with no    |
|              |             | cosine below 0 (Hessel et al. 2021, eq. 1, with w = 100)            |
| `classifier` | recognition | `recognised`, the share named as the label that it was drawn for    |
|              |             | (that of the example whose text it was); each class's at the end    |
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from vision_lang import keys as random_keys
from vision_lang import tasks
from vision_lang.data import presets
from vision_lang.errors import InputError
from vision_lang.evaluators import features as feature_lib
from vision_lang.evaluators.batches import batched
from vision_lang.evaluators.context import Context
from vision_lang.metrics import caption, classification, kernel, neighbours
from vision_lang.metrics.frechet import check_count, distance_names, frechet_distance
from vision_lang.shapes import grammar
from vision_lang.tasks.captioning import Decoding


class Asked(NamedTuple):
    """The N examples of a split that are drawn: their places in it int32 [N], the words and labels
    int32 [N] (-1: none) that they are drawn from, and their real pictures uint8 [N, R, R, 3]."""

    split: str
    number: np.ndarray
    prompts: list[str]
    labels: np.ndarray
    real: np.ndarray


# (what was asked for, the pictures uint8 [N, R, R, 3], whether the run is over) -> name -> number
Judge = Callable[[Asked, np.ndarray, bool], dict[str, float]]


def make(field: str, config: ConfigDict, context: Context, fewest: int) -> tuple[Judge, str]:
    """Makes the judge that config.<field>, a row of JUDGES, names.

    Args:
      fewest: how many pictures it is shown at least.

    Returns:
      The judge, and a note: its run, weights, and the resolution at which it sees.

    Raises:
      InputError: there is no such run, or it learned another task, or cannot judge this one.
    """
    kind, spec = JUDGES[field], config[field]
    loaded = context.load(spec)
    if loaded.config.task not in kind.tasks:
        raise InputError(
            f"{field}={spec} is a {loaded.config.task} run; a run of {' or '.join(kind.tasks)} "
            "is wanted."
        )
    resizing = feature_lib.resizing(loaded.config.data)
    note = f"{loaded.source}, weights {loaded.digest}, {resizing}"
    return kind.make(loaded, config, context, fewest), note


def asker(
    context: Context, loaded: Any, rows: Callable[[Any, dict], Any], device_batch: int
) -> Callable[..., np.ndarray]:
    """Returns (pictures uint8 [N, R, R, 3], name=[N, ...], ...) -> what `rows` says of each.

    Args:
      rows: (variables, {"image": as the judge's run sees it, name: ...}) -> [b, ...].
    """
    fit = feature_lib.fitter(loaded.task, loaded.config.data)

    def seen(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return batch | {"image": np.stack([fit(picture) for picture in batch["image"]])}

    run = batched(context.parallel, rows, device_batch, seen)
    variables = context.parallel.place_state(loaded.variables)

    def ask(pictures: np.ndarray, **more: np.ndarray) -> np.ndarray:
        return np.concatenate(list(run(variables, {"image": pictures, **more})))

    return ask


def _features(loaded: Any, config: ConfigDict, context: Context, fewest: int) -> Judge:
    """How far from the split's pictures, in a network's features."""
    layer, width = feature_lib.find_layer(loaded.task, config.layer)
    network = feature_lib.network(loaded.config, layer)
    check_count(fewest, width, config.allow_few)
    pooled = feature_lib.pooled(loaded.task, layer)
    ask = asker(context, loaded, lambda v, batch: pooled(v, batch["image"]), config.device_batch)

    @functools.cache  # the same at every period
    def real(split: str) -> np.ndarray:
        return np.concatenate([ask(images) for images in _readable(context, split)])

    def judge(asked: Asked, pictures: np.ndarray, final: bool) -> dict[str, float]:
        del final
        found, wanted = ask(pictures), real(asked.split)
        size = min(kernel.SUBSET_SIZE, len(found), len(wanted))
        distance = frechet_distance(found, wanted, allow_few=config.allow_few)
        distances = distance, kernel.kernel_distance(found, wanted, subset_size=size).mean
        support = neighbours.support(wanted, found)._asdict()
        return dict(zip(distance_names(network), distances, strict=True)) | {
            f"{name}_{network}": value for name, value in support.items()
        }

    return judge


def _readable(context: Context, split: str) -> Iterator[np.ndarray]:
    """The pictures of a split as the run reads them, uint8 [b, R, R, 3] each."""
    for batch in context.read(context.data.open(split)):
        if (batch["weight"] > 0).any():
            yield batch["image"][batch["weight"] > 0]


def _captioner(loaded: Any, config: ConfigDict, context: Context, fewest: int) -> Judge:
    """Whether a description of the picture is the prompt again."""
    how, seed = Decoding(**loaded.config.decoding), context.config.seed

    def rows(variables, batch):
        keys = random_keys.per_example(random_keys.make(seed, "captions"), batch["number"])
        return loaded.task.describe(variables, batch["image"], keys, how).tokens[:, 0]

    ask = asker(context, loaded, rows, config.device_batch)
    shapes = presets.is_shapes(context.config.data.name)

    def judge(asked: Asked, pictures: np.ndarray, final: bool) -> dict[str, float]:
        del final
        tokens = ask(pictures, number=asked.number)
        texts = [loaded.tokenizer.decode(row) for row in tokens]
        scores = caption.score(texts, [[prompt] for prompt in asked.prompts])
        numbers = {"cycle_bleu4": scores["Bleu_4"], "cycle_cider": scores["CIDEr"]}
        if shapes:
            right = [_agree(text, p) for text, p in zip(texts, asked.prompts, strict=True)]
            numbers["cycle_scene_right"] = float(np.mean(right))
        return numbers

    return judge


def _agree(text: str, prompt: str) -> bool:
    try:
        return grammar.agree(text, prompt)
    except InputError:  # a captioner may write what is no sentence
        return False


def _matcher(loaded: Any, config: ConfigDict, context: Context, fewest: int) -> Judge:
    """How near pictures are to their prompts."""
    length = loaded.config.data.text_length
    clip = loaded.config.task == "clip"
    name = "clip_score" if clip else "match"

    def rows(variables, batch):
        text = loaded.task.embed_texts(variables, batch["tokens"], batch["mask"])
        cosine = (loaded.task.embed_images(variables, batch["image"]) * text).sum(-1)
        return 100 * cosine.clip(0) if clip else cosine

    ask = asker(context, loaded, rows, config.device_batch)

    def judge(asked: Asked, pictures: np.ndarray, final: bool) -> dict[str, float]:
        del final
        tokens, mask = loaded.tokenizer.encode_batch(asked.prompts, length)
        mean = lambda seen: float(ask(seen, tokens=tokens, mask=mask).mean())  # noqa: E731
        return {name: mean(pictures), f"{name}_real": mean(asked.real)}

    return judge


def _classifier(loaded: Any, config: ConfigDict, context: Context, fewest: int) -> Judge:
    """Whether a picture is recognised as what it was drawn for."""
    if tasks.entry(loaded.config).multi_label(loaded.config):
        raise InputError(
            f"'{config.classifier}' gives a picture any number of labels (config.multi_label); a "
            "run that gives one is wanted."
        )
    names = context.data.class_names or []
    if loaded.class_names != names:
        shown = lambda some: ", ".join(some[:5]) + (", ..." if len(some) > 5 else "")  # noqa: E731
        raise InputError(
            f"'{config.classifier}' tells {len(loaded.class_names)} classes "
            f"({shown(loaded.class_names)}), the data set '{context.data.name}' has {len(names)} "
            f"({shown(names)}): the same, in the same order, are wanted."
        )

    def rows(variables, batch):
        return loaded.task.logits(variables, batch["image"]).argmax(-1)

    ask = asker(context, loaded, rows, config.device_batch)

    def judge(asked: Asked, pictures: np.ndarray, final: bool) -> dict[str, float]:
        known = asked.labels >= 0
        if not known.any():
            raise InputError(f"No example of the split '{asked.split}' has a class.")
        answers, labels = ask(pictures[known]), asked.labels[known]
        numbers = {"recognised": float(np.mean(answers == labels))}
        if final:
            table = classification.confusion_matrix(answers, labels, len(names))
            shares = zip(names, classification.per_class_accuracy(table), strict=True)
            numbers |= {f"recognised/{n.replace('/', '-')}": float(a) for n, a in shares if a == a}
        return numbers

    return judge


class Kind(NamedTuple):
    """make: (its run, its entry in config.evaluators, context, fewest pictures) -> the judge.
    tasks: what its run may have learned."""

    make: Callable[[Any, ConfigDict, Context, int], Judge]
    tasks: tuple[str, ...]


# The field of config.evaluators.<name> that names its run, '' = not asked -> how it judges
JUDGES = {
    "features": Kind(_features, ("recognition", "captioning", "features", *tasks.MATCHING)),
    "captioner": Kind(_captioner, ("captioning",)),
    "matcher": Kind(_matcher, tasks.MATCHING),
    "classifier": Kind(_classifier, ("recognition",)),
}
