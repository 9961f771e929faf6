"""The diffusion task: its null text, its padding, its labels, and its loss redone by hand."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import diffusion as config_file
from tests.tasks import parts
from vision_lang import keys as random_keys
from vision_lang.data import presets
from vision_lang.diffusion import guidance, schedules
from vision_lang.errors import InputError
from vision_lang.models.sketch import Sketch, SketchSpec
from vision_lang.tasks import diffusion, diffusion_config, preprocessing
from vision_lang.tasks.conditioning import Condition
from vision_lang.training import parallel

ROWS, SIDE, WORDS, LENGTH = 4, 16, 20, 6


def make(length=LENGTH, classes=0, **changes):
    """A tiny task; see `parts.change`."""
    config = config_file.get_config("tiny")
    config.batch_size = ROWS
    config.data.update(resolution=SIDE, text_length=length)
    parts.change(config, **changes)
    return diffusion_config.from_config(config, parts.facts(WORDS, length, classes))


def batch(length=LENGTH):
    """Captions of different lengths, padded to `length`."""
    rows = parts.batch(SIDE, texts=(1, 2, 3, 4), words=WORDS, length=length, labels=(0, 1, 2, -1))
    return rows | {"progress": np.full(ROWS, 0.5, np.float32)}


def weights(task):
    """Parameters without zeros, the same for the same shape, whatever the task's other rows."""
    shapes = jax.eval_shape(task.init, jax.random.key(0))

    def fill(shape):
        count = np.prod(shape.shape, dtype=int)
        values = np.random.default_rng(count % 1_000).standard_normal(count)
        return jnp.asarray(0.2 * values.reshape(shape.shape), jnp.float32)

    return jax.tree.map(fill, shapes)


def keys(purpose="train"):
    return random_keys.per_example(random_keys.make(0, purpose), jnp.arange(ROWS))


def loss_of(task, variables, rows, train=False):
    return task.loss(variables, rows, keys(), across=parallel.ONE_DEVICE, train=train)[0]


class Echo:
    """Networks that answer at once and note what they were given; there is no sketch."""

    def __init__(self, task):
        self.seen = {}
        self.task = dataclasses.replace(
            task,
            text_encoder=SimpleNamespace(apply=self.text),
            unet=SimpleNamespace(apply=self.unet),
            sketch=Sketch(SketchSpec(layers=0), SIDE),
        )
        self.variables = {"params": {"unet": {}, "text_encoder": {}}}  # type: ignore[var-annotated]

    def text(self, params, tokens, mask, dropout):
        self.seen.update(tokens=np.asarray(tokens), text_mask=mask)
        return jnp.asarray(tokens, jnp.float32)[..., None], {}

    def unet(self, params, x, time, context, mask, label, dropout):
        self.seen.update(x=x, time=time, label=np.asarray(label), mask=mask)
        return 0.25 * x + 0.125, {}


# The null text. -----------------------------------------------------------------------------------


def test_the_null_text_of_training_is_that_of_sampling():
    echo = Echo(make(caption_drop=1.0))
    null = echo.task.conditioning.null(ROWS)
    loss_of(echo.task, echo.variables, batch(), train=True)
    for name, value in (("tokens", null.tokens), ("text_mask", null.mask), ("label", null.label)):
        np.testing.assert_array_equal(echo.seen[name], value)
    condition = echo.task.condition_of(batch())
    echo.task.denoiser(echo.variables, condition, diffusion.Sampling(guidance=0.0))
    np.testing.assert_array_equal(echo.seen["tokens"], null.tokens)  # encoded last
    loss_of(echo.task, echo.variables, batch(), train=False)  # validation drops nothing
    np.testing.assert_array_equal(echo.seen["tokens"], batch()["tokens"])


def test_captions_are_dropped_one_by_one():
    echo = Echo(make(caption_drop=0.5))
    null, given = echo.task.conditioning.null(ROWS).tokens, batch()["tokens"]
    dropped = 0
    for step in range(50):
        step_keys = random_keys.per_example(random_keys.make(0, "train", step), jnp.arange(ROWS))
        echo.task.loss(echo.variables, batch(), step_keys, across=parallel.ONE_DEVICE, train=True)
        rows = (echo.seen["tokens"] == null).all(1)
        np.testing.assert_array_equal(echo.seen["tokens"], np.where(rows[:, None], null, given))
        dropped += rows.sum()
    assert 0.4 < dropped / (50 * ROWS) < 0.6


def test_guidance_0_1_and_3():
    task = make()
    variables, rows = weights(task), batch()
    condition, null = task.condition_of(rows), task.conditioning.null(ROWS)
    x = jax.random.normal(jax.random.key(1), (ROWS, SIDE, SIDE, 3))
    level = task.schedule.level(jnp.float32(0.7))

    @jax.jit
    def both(variables, x):
        found = {}
        for scale in (0.0, 1.0, 3.0):
            sampling = diffusion.Sampling(guidance=scale, clip="none")
            found[str(scale)] = task.denoiser(variables, condition, sampling)(x, level)
        for name, one in (("conditional", condition), ("null", null)):
            time = jnp.full(ROWS, task.schedule.network_time(level.t))
            found[name] = task.network(variables, x, time, task.encode(variables, one))
        return found

    found = jax.device_get(both(variables, x))
    wanted = {0.0: found["null"], 1.0: found["conditional"]}
    wanted[3.0] = found["null"] + 3.0 * (found["conditional"] - found["null"])
    size = np.abs(found["conditional"] - found["null"]).max()
    assert size > 1e-4
    for scale, value in wanted.items():
        np.testing.assert_allclose(found[str(scale)], value, atol=0.02 * size)
    assert guidance.EVERYWHERE == (0.0, 1.0) == diffusion.Sampling().interval


# Padding. -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["masked", "none"])
def test_longer_padding(policy):
    short, long = (make(length, text_mask=policy) for length in (LENGTH, LENGTH + 5))
    sampling = diffusion.Sampling(steps=2, guidance=2.0)

    @jax.jit
    def results(variables, longer):
        found = []
        for task, values in ((short, variables), (long, longer)):
            rows = jax.tree.map(jnp.asarray, batch(len(task.conditioning.null_tokens)))
            pictures = task.sample(values, task.condition_of(rows), keys("samples"), sampling)
            found.append((loss_of(task, values, rows, train=True), pictures))
        return found

    longer, variables = weights(long), weights(short)
    table = longer["params"]["text_encoder"]["position_embedding"]["embedding"]
    variables["params"]["text_encoder"]["position_embedding"]["embedding"] = table[:LENGTH]
    one, other = jax.device_get(results(variables, longer))
    for a, b in zip(one, other, strict=True):
        if policy == "masked":
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
        else:  # every position is attended, so that the padding tells
            assert np.abs(a - b).max() > 1e-4


# Labels. ------------------------------------------------------------------------------------------


def test_a_label_is_the_condition_and_texts_are_not():
    echo = Echo(make(classes=3, condition="label", model__sketch__layers=0))
    condition = echo.task.condition_of(batch())
    np.testing.assert_array_equal(condition.label, [0, 1, 2, 3])  # -1 is the null class
    np.testing.assert_array_equal(condition.tokens, echo.task.conditioning.null(ROWS).tokens)
    dropped = echo.task.conditioning.drop(condition, jnp.array([True, False, True, False]))
    np.testing.assert_array_equal(dropped.label, [3, 1, 3, 3])
    with_text = make(classes=3).condition_of(batch())
    np.testing.assert_array_equal(with_text.label, [3, 3, 3, 3])
    np.testing.assert_array_equal(with_text.tokens, batch()["tokens"])


def test_labels_change_what_the_network_says():
    task = make(classes=3, condition="label", model__sketch__layers=0)
    assert task.unet.num_classes == 4  # and the null class
    losses = jax.jit(lambda v, label: loss_of(task, v, batch() | {"label": label}))
    variables = weights(task)
    first, second = (losses(variables, np.full(ROWS, label)) for label in (0, 2))
    assert np.abs(first - second).min() > 1e-6
    with pytest.raises(InputError, match="condition=label needs a data set with classes"):
        make(condition="label")


# What a config may ask. ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value", "part"),
    [
        ("condition", "tekst", "text"),
        ("text_mask", "mask", "masked"),
        ("model__dtype", "float16", "bfloat16"),
        ("model__fused_attention", True, "set model.dtype=bfloat16"),
        ("diffusion__schedule", "linaer", "'linear'"),
        ("diffusion__prediction", "eps", "epsilon"),
        ("diffusion__weighting", "minsnr", "'min_snr'"),
        ("diffusion__time_sampling", "lognormal", "normal'"),
        ("sampling__sampler", "dpmpp2m", "dpmpp_2m"),
        ("sampling__spacing", "unifrom", "'uniform'"),
        ("sampling__clip", "sttic", "'static'"),
        ("sampling__final_sigma", "sigma_mni", "'sigma_min'"),
        ("diffusion__prediction", "epsilon", "zero signal"),  # with the flow schedule
        ("model__patch", 3, "no multiple of model.patch=3"),
        ("model__sketch__cells", 3, "no multiple of model.sketch.cells=3"),
        ("model__sketch__heads", 3, "sketch's width=16 is no multiple of its heads=3"),
        ("model__text__heads", 3, "width=16 is no multiple of its heads=3"),
        ("model__text__distance_slopes", ((0.5, 9.0),), r"1 row\(s\) for heads=2"),
        ("model__text__distance_slopes", ((0.5,), (9.0,)), "rows .before, behind."),
        ("model__text__activation", "geul", "'gelu'"),
        ("model__unet__groups", 3, "width 8 is no multiple of its groups=3"),
        ("model__unet__heads", (3,), "width 8 is no multiple of its 3 heads"),
        ("model__unet__heads", (1, 2), "one entry for each level"),
        ("model__unet__depth", (0, 1), "one entry for each level"),
        ("model__unet__widths", (), "one entry for each level"),
        ("diffusion__time_course", ((0.5, 1.0, 1.0), (0.2, 1.0, 1.0)), "rising shares"),
        ("diffusion__time_course", ((0.0, 1.0),), "rows"),
        ("diffusion__time_course", (), "rows"),
        ("diffusion__time_course", ((0.0, 1.0, -1.0),), "negative deviation"),
    ],
)
def test_what_is_not_known_is_refused_when_the_config_is_read(field, value, part):
    with pytest.raises(InputError, match=part):
        make(**{field: value})


def test_pictures_with_captions_are_never_mirrored_unless_the_config_says_so():
    assert not config_file.get_config().data.flip
    for name in ("shapes", "folder", "coco_captions", "any/other"):
        assert presets.fields(name)["flip"] is False


# The loss by hand. --------------------------------------------------------------------------------


def test_the_loss_of_x_prediction_by_hand():
    weights = {"diffusion__weighting": "uniform", "diffusion__gradient_weight": 3.0}
    weights["diffusion__mean_weight"] = 0.2
    echo = Echo(make(diffusion__schedule="flow", diffusion__prediction="x", **weights))
    rows = batch() | {"index": np.array([0, 5, 6, 41], np.int32)}
    losses, new, metrics = echo.task.loss(
        echo.variables, rows, keys(), across=parallel.ONE_DEVICE, train=False
    )
    u = np.mod(0.5 + rows["index"] * (np.sqrt(5) - 1) / 2, 1.0)
    schedule = schedules.make_schedule("flow")
    t = (schedule.t_min + (schedule.t_max - schedule.t_min) * u)[:, None, None, None]
    draw = jax.vmap(lambda key: jax.random.normal(key, (SIDE, SIDE, 3)))
    eps = np.asarray(draw(random_keys.named(keys(), "noise")))
    x0 = rows["image"].astype(np.float64) / 127.5 - 1.0
    x_t = (1 - t) * x0 + t * eps
    error = 0.25 * x_t + 0.125 - x0
    mean_weight = (1 - t + 0.2 * t)[:, 0, 0, 0]
    mean = error.mean(axis=(1, 2), keepdims=True)
    wanted = ((error - mean) ** 2).mean(axis=(1, 2, 3)) + mean_weight * (mean**2).mean((1, 2, 3))
    for step in (error[:, 1:] - error[:, :-1], error[:, :, 1:] - error[:, :, :-1]):
        wanted += 3.0 * (1 - t[:, 0, 0, 0]) * (step**2).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(losses, wanted, rtol=1e-5)
    assert new == {}
    sums = np.zeros((4, 2))
    for value, quarter in zip(wanted, (u * 4).astype(int), strict=True):
        sums[quarter] += value, 1
    logged = [metrics[f"loss_t{middle:.3f}"] for middle in (0.125, 0.375, 0.625, 0.875)]
    np.testing.assert_allclose(np.asarray(logged), sums, rtol=1e-5)


# The sketch. --------------------------------------------------------------------------------------


def test_the_sketch_is_seen_by_the_network_and_learns_from_pictures_alone():
    task = make(diffusion__mean_weight=0.2, diffusion__sketch_weight=4.0, model__sketch__hints=2)
    variables, rows = weights(task), batch()

    @jax.jit
    def both(params):
        """The loss of the network alone, and that of the sketch."""
        values = {"params": params}
        losses, _, metrics = task.loss(
            values, rows, keys(), across=parallel.ONE_DEVICE, train=False
        )
        missed = metrics["loss_sketch"][0]
        return losses.sum() - 4.0 * missed, missed

    params = variables["params"]
    sketch = task.encode(variables, task.condition_of(rows)).sketch.picture
    error = np.asarray(sketch, np.float64) - (rows["image"] / 127.5 - 1.0)
    mean = error.mean(axis=(1, 2), keepdims=True)
    wanted = ((error - mean) ** 2).mean() + 0.2 * (mean**2).mean()
    np.testing.assert_allclose(both(params)[1], ROWS * wanted, rtol=1e-4)

    of_network = jax.grad(lambda p: both(p)[0])(params)
    of_sketch = jax.grad(lambda p: both(p)[1])(params)
    size = lambda tree: max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(tree))  # noqa: E731
    heads = [g["sketch"]["proj_out"]["kernel"].reshape(-1, 5) for g in (of_network, of_sketch)]
    for picture, hints in ((heads[0][:, :3], heads[0][:, 3:]), (heads[1][:, 3:], heads[1][:, :3])):
        assert size(picture) < 1e-4 * size(hints)  # each head has a teacher of its own
    assert size(of_sketch["unet"]) == 0 and size(of_sketch["text_encoder"]) > 0
    head = params["sketch"]["proj_out"] | {"bias": params["sketch"]["proj_out"]["bias"] + 0.3}
    moved = params | {"sketch": params["sketch"] | {"proj_out": head}}
    assert abs(float(both(moved)[0] - both(params)[0])) > 1e-4  # the network sees it


def test_fixed_times_cover_the_range_evenly():
    schedule = schedules.make_schedule("flow")
    for start in (0, 1_000):
        t = np.sort(diffusion.fixed_times(schedule, jnp.arange(start, start + 64)))
        gaps = np.diff([schedule.t_min, *t, schedule.t_max])
        assert gaps.max() < 3 / 64


def test_pictures_survive_the_way_to_the_model_and_back():
    every = np.arange(256, dtype=np.uint8)
    there = preprocessing.symmetric(jnp.asarray(every))
    assert float(there[0]) == -1 and float(there[-1]) == 1
    np.testing.assert_array_equal(diffusion.to_uint8(there), every)
    np.testing.assert_array_equal(diffusion.to_uint8(jnp.array([-2.0, 3.0])), [0, 255])


def test_conditions_are_made_of_what_was_given():
    task = make()
    made = task.make_condition(*(jnp.asarray(batch()[n]) for n in ("tokens", "text_mask", "label")))
    assert isinstance(made, Condition)
    np.testing.assert_array_equal(made.mask, batch()["text_mask"])
