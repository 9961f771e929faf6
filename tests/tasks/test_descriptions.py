"""Choosing among descriptions: each way's scores redone by hand, and what they do not depend on."""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from tests.tasks import parts, test_captioning, test_contrastive, test_diffusion
from vision_lang import keys as random_keys
from vision_lang.data import presets, tokenizer
from vision_lang.errors import InputError
from vision_lang.tasks import descriptions
from vision_lang.tasks.descriptions import Candidates, How

ROWS, COUNT, NOISES, SEED = 3, 5, 4, 3
WHICH = np.array([[0, 1, 2, 3], [4, 0, 3, 1], [2, 4, 1, 0]])
MODULES = {
    "contrastive": test_contrastive, "captioning": test_captioning, "diffusion": test_diffusion,
}  # fmt: skip


@functools.cache
def made(name, error="noise", **changes):
    """The task `name`, its variables, candidates of `several` texts, pictures, compiled scores."""
    module = MODULES[name]
    task = module.make(**changes)
    variables = test_diffusion.weights(task) if name == "diffusion" else parts.init(task, 3)
    if name == "captioning":  # texts differ in likelihood
        table = variables["params"]["decoder"]["wte"]
        table["embedding"] = table["embedding"] * 8
    if name == "contrastive":
        scaling = {"logit_scale": jnp.log(5.0), "logit_bias": jnp.float32(-2.0)}
        variables["params"]["projections"] |= scaling
    several = 3 if name == "contrastive" else 1
    rows = parts.batch(
        module.SIDE, texts=[1 + k % 4 for k in range(COUNT * several)], words=module.WORDS,
        length=module.LENGTH,
    )  # fmt: skip
    shape = (COUNT, several, module.LENGTH)
    texts = (rows["tokens"].reshape(shape), rows["text_mask"].reshape(shape))
    candidates = Candidates(*texts, np.arange(COUNT, dtype=np.int32))
    way = descriptions.make(name, task, How(noises=NOISES, error=error, seed=SEED))
    table = jax.jit(way.read)(variables, candidates)
    score = jax.jit(functools.partial(way.scores, variables, table))
    return task, variables, candidates, rows["image"][:ROWS], score


def test_contrastive_by_numpy():
    """CLIP's recipe: the mean of the unit vectors of a candidate's texts, of length 1 again."""
    task, variables, candidates, images, score = made("contrastive")
    tokens, mask = (x.reshape(-1, x.shape[-1]) for x in candidates[:2])
    texts = np.float64(jax.jit(task.embed_texts)(variables, tokens, mask))
    texts = texts.reshape(COUNT, 3, -1).mean(1)
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    image = np.float64(jax.jit(task.embed_images)(variables, images))
    wanted = np.take_along_axis(5.0 * image @ texts.T - 2.0, WHICH, 1)
    np.testing.assert_allclose(score(images, WHICH), wanted, rtol=1e-4, atol=1e-4)


def test_captioning_token_by_token():
    """The sum of each token's log-probability, the end's too, given the picture and those before it
    and nothing behind it."""
    task, variables, candidates, images, score = made("captioning")

    @jax.jit
    def next_one(images, tokens, mask):
        features, _ = task.context(variables, images)
        decoder = {"params": variables["params"]["decoder"]}
        return jax.nn.log_softmax(task.decoder.apply(decoder, tokens, mask, features)[0])

    wanted = np.zeros(WHICH.shape)
    for column, rows in enumerate(WHICH.T):
        tokens, mask = candidates.tokens[rows, 0], candidates.mask[rows, 0]
        for place in range(1, tokens.shape[1]):
            seen = np.arange(tokens.shape[1]) < place
            log_p = np.asarray(next_one(images, np.where(seen, tokens, 7), mask & seen))
            own = log_p[np.arange(ROWS), place - 1, tokens[:, place]]
            wanted[:, column] += mask[:, place] * own
    np.testing.assert_allclose(score(images, WHICH), wanted, rtol=1e-4)
    assert wanted.std(1).min() > 0.1


def test_captioning_per_token():
    """Of texts with 1, 2 and 3 words, and an end, which are as likely as the square of that."""
    mask = np.arange(5) < np.array([[3], [4], [5]])
    task: Any = SimpleNamespace(
        context=lambda variables, images: (None, None),
        likelihood_in=lambda v, context, tokens, mask: -jnp.square(mask[:, 1:].sum(1)),
    )
    way = descriptions.make("captioning", task, How(per_token=True))
    table = Candidates(np.zeros(mask.shape, np.int32), mask, np.zeros(3, np.int32))
    which = np.array([[0, 2], [1, 1]])
    np.testing.assert_allclose(way.scores(None, table, None, which), -2.0 - which)


LABELS = {"classes": COUNT, "condition": "label", "model__sketch__layers": 0}


@pytest.mark.parametrize("changes", [{}, LABELS | {"error": "picture"}], ids=["text", "label"])
def test_diffusion_by_a_loop(changes):
    """-|eps - eps_theta|^2, or -|x0 - x0_theta|^2, with the noises written out."""
    task, variables, candidates, images, score = made("diffusion", **changes)
    column = WHICH[:, 0]
    given = task.make_condition(*(jnp.asarray(x[column]) for x in (
        candidates.tokens[:, 0], candidates.mask[:, 0], candidates.label
    )))  # fmt: skip

    @jax.jit
    def output(x, time):
        return task.network(variables, x, time, task.encode(variables, given))

    x0 = images.astype(np.float64) / 127.5 - 1
    wanted = np.zeros(ROWS)
    for k in range(NOISES):
        key = jax.random.fold_in(random_keys.make(SEED, "descriptions"), k)
        eps = np.float64(jax.random.normal(key, x0.shape[1:]))
        t = 1e-3 + (1 - 1e-3) * (k + 0.5) / NOISES  # the default schedule: (1 - t) x0 + t eps
        x_t = (1 - t) * x0 + t * eps
        time = np.full(ROWS, task.schedule.network_time(np.float32(t)))
        guess = np.float64(output(x_t.astype(np.float32), time))  # of x0
        missed = guess - x0 if changes else (x_t - (1 - t) * guess) / t - eps
        wanted -= (missed**2).sum((1, 2, 3)) / NOISES
    np.testing.assert_allclose(score(images, WHICH)[:, 0], wanted, rtol=1e-4)


@pytest.mark.parametrize("name", list(MODULES))
def test_a_score_depends_on_its_own_picture_and_description_alone(name):
    *_, images, score = made(name)
    found = np.asarray(score(images, WHICH))
    assert np.unique(found).size == found.size
    order = np.array([2, 0, 3, 1])
    np.testing.assert_array_equal(score(images, WHICH[:, order]), found[:, order])
    padded = np.where(np.arange(4) < 2, WHICH, WHICH[:, :1])  # two candidates, and padding
    np.testing.assert_array_equal(score(images, padded)[:, :2], found[:, :2])
    others = np.stack([images[0], images[0], images[0][::-1]])
    np.testing.assert_array_equal(score(others, WHICH)[0], found[0])


# What stands for the candidates. ------------------------------------------------------------------

WORDS = tokenizer.train(["a photo of an ankle boot", "a red circle"], 400)


def candidates(names, classes=(), templates=(), *, own=False, length=20, **fields):
    config = ConfigDict({"task": "contrastive", "data": presets.fields("fashion_mnist")} | fields)
    config.data.text_length = length
    return descriptions.candidates(config, WORDS, names, classes, templates=templates, own=own)


def texts(found):
    return [[WORDS.decode(tokens) for tokens in several] for several in found.tokens]


def test_classes_become_phrases_and_templates_are_filled():
    assert texts(candidates(["Ankle boot"], own=True)) == [["a photo of an ankle boot"]]
    templates = ("{a}!", "no {}", "my {name}")
    found = texts(candidates(["Ankle boot", "Bag"], templates=templates, own=True))
    assert found == [["an ankle boot!", "no ankle boot", "my ankle boot"],
                     ["a bag!", "no bag", "my bag"]]  # fmt: skip
    assert texts(candidates(["a {red} circle"])) == [["a {red} circle"]]
    assert texts(candidates(["a red one"], templates=("it is {}",))) == [["it is a red one"]]


def test_what_is_wrong_is_named():
    with pytest.raises(
        InputError, match="at most 4 tokens.*'many many many words', '(more )+more'"
    ):
        candidates(["a", "many many many words", "more more more more"], length=6)
    candidates(["many_many many words"], own=True, length=6)  # cut, as in training
    for template in ("a photo", "{b}", "{", "{name.x}", "{0} {1}"):
        with pytest.raises(InputError, match="no place"):
            candidates(["a", "b"], templates=(template,))
    with pytest.raises(InputError, match="contrastive runs.*captioning run"):
        candidates(["a", "b"], templates=("{}",), task="captioning")
    label = {"task": "diffusion", "condition": "label"}
    assert candidates(["b", "a"], ["a", "c", "b"], **label).label.tolist() == [2, 0]
    with pytest.raises(InputError, match="knows no texts.*'circle'"):
        candidates(["a circle", "square"], ["circle", "square"], **label)
    with pytest.raises(InputError, match="'diffusion'"):
        descriptions.make("difusion", None, How())
    with pytest.raises(InputError, match="'picture'"):
        descriptions.make("diffusion", test_diffusion.make(), How(error="pictures"))
