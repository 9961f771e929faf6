"""Which of several descriptions fits a picture: tasks that can tell, behind one interface.

    way = make(config.task, task, How())
    table = way.read(variables, candidates)                   # once
    scores = way.scores(variables, table, images, which)      # batch by batch, [b, K]

| task        | the score of a description                                     | source            |
|-------------|----------------------------------------------------------------|-------------------|
| contrastive | the scaled cosine of the picture's vector and the mean of its  | Radford et al.    |
| and clip    | texts' unit vectors, made one of length 1 again                | 2021, sec. 3.1.4  |
| captioning  | log p(description given the picture), end included             |                   |
| diffusion   | -mean |eps - eps_theta(x_t, description)|^2, at the same times | Li et al. 2023,   |
|             | and noises for every description and picture; no guidance      | sec. 3            |

The softmax of the scores over the candidates is what each holds for their probabilities. A score
depends neither on the other candidates nor on the other pictures.

Shapes: b pictures, K candidates of each, N candidates in all, T texts of a candidate (more than one
for contrastive and clip alone), L text length, D width of the contrastive vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from vision_lang import keys as random_keys
from vision_lang.data import presets
from vision_lang.data.tokenizer import Tokenizer
from vision_lang.diffusion.prediction import add_noise
from vision_lang.diffusion.schedules import Level
from vision_lang.errors import InputError, choose
from vision_lang.models.margin import unit
from vision_lang.tasks import MATCHING
from vision_lang.tasks.captioning import Captioning
from vision_lang.tasks.clip import Clip
from vision_lang.tasks.contrastive import Contrastive
from vision_lang.tasks.diffusion import Diffusion, Sampling
from vision_lang.tasks.preprocessing import symmetric

Variables = Any
# What diffusion's error is of, as a factor of x0's error: of the noise, as in the paper, which is
# alpha / sigma times as large and so counts most where there is little noise; or of the picture.
ERRORS: dict[str, Callable[[Level], Any]] = {
    "noise": lambda level: level.alpha / level.sigma,
    "picture": lambda level: 1.0,
}
READ_BATCH = 64  # candidates whose texts are embedded at once
# x0 as the conditional model has it: what is compared is the model, not a way to draw with it.
PLAIN = Sampling(guidance=1.0, clip="none")


@dataclass(frozen=True)
class How:
    """Choices that concern one task each.

    per_token: captioning: the mean over a description's tokens counts, not the sum, which favours
      short ones.
    noises: diffusion: over how many times and noises the error is averaged.
    error: diffusion: a row of ERRORS.
    seed: diffusion: decides the noises, and nothing else does.
    """

    per_token: bool = False
    noises: int = 16
    error: str = "noise"
    seed: int = 0


class Candidates(NamedTuple):
    """What may be the answer: texts, or labels where a diffusion model knows these alone."""

    tokens: np.ndarray  # int32 [N, T, L]
    mask: np.ndarray  # bool [N, T, L]
    label: np.ndarray  # int32 [N]


class Way(NamedTuple):
    """How a task compares pictures with descriptions; pure functions.

    read: (variables, candidates) -> a tree of arrays [N, ...].
    scores: (variables, that tree, images uint8 [b, H, W, 3], which int32 [b, K]: of the N) ->
      float32 [b, K].
    """

    read: Callable[[Variables, Candidates], Any]
    scores: Callable[[Variables, Any, jax.Array, jax.Array], jax.Array]


def contrastive(task: Contrastive | Clip, how: How) -> Way:
    """Similarity."""
    del how

    def read(variables, candidates):
        def one(texts):  # of a candidate, [T, L] twice
            return unit(task.embed_texts(variables, *texts).mean(0))

        return jax.lax.map(one, candidates[:2], batch_size=READ_BATCH)  # [N, D]

    def scores(variables, vectors, images, which):
        found = task.similarity(variables, task.embed_images(variables, images), vectors)
        return jnp.take_along_axis(found, which, axis=1)

    return Way(read, scores)


def captioning(task: Captioning, how: How) -> Way:
    """Likelihood."""

    def scores(variables, table, images, which):
        context, _ = task.context(variables, images)

        def one(tokens, mask, label):
            del label
            found = task.likelihood_in(variables, context, tokens, mask)
            return found / mask[:, 1:].sum(1) if how.per_token else found

        return _by_candidate(one, table, which)

    return Way(_only_text, scores)


def diffusion(task: Diffusion, how: How) -> Way:
    """The error, its square summed over the picture; at times in the middles of equal parts of the
    range, one noise each."""
    schedule, factor = task.schedule, choose(ERRORS, how.error, "error of a diffusion model")
    share = (np.arange(how.noises, dtype=np.float32) + 0.5) / how.noises
    times = schedule.t_min + (schedule.t_max - schedule.t_min) * share

    def scores(variables, table, images, which):
        x0 = task.latents.encode(variables, symmetric(images))
        keys = random_keys.per_example(
            random_keys.make(how.seed, "descriptions"), jnp.arange(how.noises)
        )

        def one(*condition):
            denoise = task.denoiser(variables, task.make_condition(*condition), PLAIN)

            def error(draw):
                t, key = draw
                eps = jax.random.normal(key, x0.shape[1:])  # every picture's
                level = schedule.level(t)
                missed = x0 - denoise(add_noise(x0, eps, level), level)
                return jnp.square(factor(level) * missed).sum((1, 2, 3))

            return -jax.lax.map(error, (jnp.asarray(times), keys)).mean(0)

        return _by_candidate(one, table, which)

    return Way(_only_text, scores)


WAYS: dict[str, Callable[[Any, How], Way]] = {
    "contrastive": contrastive,
    "clip": contrastive,
    "captioning": captioning,
    "diffusion": diffusion,
}


def make(name: str, task: Any, how: How) -> Way:
    """Returns the way of the task `name` (config.task).

    Raises:
      InputError: that task knows no descriptions.
    """
    return choose(WAYS, name, "task that can tell descriptions apart")(task, how)


def candidates(
    config: ConfigDict,
    words: Tokenizer,
    names: Sequence[str],
    classes: Sequence[str],
    *,
    templates: Sequence[str] = (),
    own: bool,
) -> Candidates:
    """Returns what stands for names: N times T texts, or the labels of a model of classes.

    Args:
      config: the run's; words: its tokenizer; classes: the names of its data's classes.
      templates: T of them, see presets.fill; () = the preset's for classes, else the bare text.
      own: the names are classes of the data, and cut where too long, as they are in training.

    Raises:
      InputError: a template without a place for the name, or for a run of another task; texts that
        are too long; no such class.
    """
    length = config.data.text_length
    if config.task == "diffusion" and config.condition == "label":
        known = {name: label for label, name in reversed(list(enumerate(classes)))}
        labels = [choose(known, name, "class (this run knows no texts)") for name in names]
        blank = np.zeros((len(labels), 1, length))
        return Candidates(blank.astype(np.int32), blank.astype(bool), np.array(labels, np.int32))
    if templates and config.task not in MATCHING:
        raise InputError(
            f"Templates are for clip or contrastive runs; this is a {config.task} run."
        )
    for template in templates:
        presets.check_template(template)
    if own:
        preset = presets.get(config.data.name)
        texts = [[presets.phrase(n, preset, t) for t in templates or ("",)] for n in names]
    else:
        texts = [[presets.fill(t, n) for t in templates or ("{}",)] for n in names]
    return encode(words, texts, length, strict=not own or bool(templates))


def encode(
    words: Tokenizer, texts: Sequence[Sequence[str]], length: int, *, strict: bool
) -> Candidates:
    """Returns candidates that are texts, N times T; strict: all that are too long for L = length
    are named in an InputError, instead of being cut."""
    every = [text for several in texts for text in several]
    long = [text for text in every if strict and words.count_truncated([text], length)]
    if long:
        raise InputError(
            f"Too long for this run, whose texts have at most {length - 2} tokens (data.text_length"
            f"={length}, less begin and end): {', '.join(map(repr, long))}."
        )
    tokens, mask = words.encode_batch(every, length)
    shape = (len(texts), -1, length)
    nothing = np.full(len(texts), -1, np.int32)
    return Candidates(tokens.reshape(shape), mask.reshape(shape), nothing)


def _only_text(variables: Variables, candidates: Candidates) -> Candidates:
    """Nothing is made beforehand: the one text of each candidate, [N, L], and its label."""
    del variables
    tokens, mask, label = candidates
    return Candidates(tokens[:, 0], mask[:, 0], label)


def _by_candidate(one: Callable[..., jax.Array], table: Candidates, which: jax.Array) -> jax.Array:
    """One candidate of every picture after the other, so that memory does not grow with K: `one`
    takes the rows of the table that b pictures are compared with and returns their scores [b]."""

    def score(rows):  # [b]
        return one(*(jnp.asarray(column)[rows] for column in table))

    return jax.lax.map(score, which.T).T
