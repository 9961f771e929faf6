"""The U-Net: what may and may not reach a pixel, precision, sizes. tests/parity knows its twin."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.parameters import agree, count, random_parameters, shapes
from vision_lang.models.unet import UNETS, UNet, UNetSpec

# One level: two take twice as long to compile, and nothing here but the sizes is about levels.
PLAIN = UNetSpec((8,), depth=(1,), heads=(2,), layers=1, groups=4)
SPEC = dataclasses.replace(PLAIN, positions=True, pooled_text=True)
BATCH, SIZE, CHANNELS, LENGTH, CONTEXT, CLASSES = 3, (5, 6), 3, 8, 12, 4
NETWORK = UNet(SPEC, CHANNELS, CLASSES)
RNG = np.random.default_rng(2)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def inputs():
    """x, time, context, mask, label of a batch, by name."""
    return {
        "x": normal(BATCH, *SIZE, CHANNELS),
        "time": np.array([0.0, 400.5, 999.0], np.float32),
        "context": normal(BATCH, LENGTH, CONTEXT),
        "mask": np.arange(LENGTH) < np.array([[3], [5], [1]]),
        "label": np.array([0, 2, 3]),
    }


INPUTS = inputs()
PARAMS = random_parameters(NETWORK, **INPUTS)


QUICK = {"xla_backend_optimization_level": 0}  # to compile these programs costs more than to run


@functools.cache
def compiled(network):
    return jax.jit(network.apply, compiler_options=QUICK)


def predict(network=NETWORK, params=PARAMS, **changed):
    """The prediction and the blocks' outputs, as NumPy arrays, for INPUTS with changes."""
    output = compiled(network)({"params": params}, **{**INPUTS, **changed})
    return jax.tree.map(np.asarray, output)


def test_padding_of_the_text_changes_nothing():
    output, blocks = predict()
    padding = ~INPUTS["mask"][..., None]
    other, other_blocks = predict(context=np.where(padding, 50.0, INPUTS["context"]))
    jax.tree.map(np.testing.assert_array_equal, (other, other_blocks), (output, blocks))
    shorter, _ = predict(context=INPUTS["context"][:, :5], mask=INPUTS["mask"][:, :5])
    agree(shorter, output, 1e-6)
    attended, _ = predict(mask=None)  # which means that every position is
    agree(predict(mask=np.ones_like(INPUTS["mask"]))[0], attended, 1e-6)
    assert np.abs(attended - output).max() > 1e-3


@pytest.mark.parametrize("name", ["x", "time", "context", "mask", "label"])
def test_an_input_changes_its_own_row_and_no_other(name):
    value = INPUTS[name].copy()
    value[1] = np.roll(INPUTS[name], 1, axis=0)[1]
    outputs, (expected, _) = predict(**{name: value})[0], predict()
    np.testing.assert_array_equal(outputs[[0, 2]], expected[[0, 2]])
    assert np.abs(outputs[1] - expected[1]).max() > 1e-3


def test_rows_take_their_dropout_along():
    dropping = UNet(dataclasses.replace(SPEC, dropout=0.3), CHANNELS, CLASSES)
    keys = jax.random.split(jax.random.key(0), BATCH)
    whole, _ = predict(dropping, keys=keys)
    order = np.array([2, 0])
    part, _ = predict(dropping, keys=keys[order], **{k: v[order] for k, v in INPUTS.items()})
    agree(part, whole[order], 1e-5)
    assert np.abs(whole - predict()[0]).max() > 0.1
    np.testing.assert_array_equal(predict(dropping)[0], predict()[0])


def test_a_class_adds_its_row_to_the_time():
    _, blocks = predict()
    without = {k: v for k, v in PARAMS.items() if k != "class_embedding"}
    _, plain = predict(UNet(SPEC, CHANNELS), without)
    rows = PARAMS["class_embedding"]["embedding"][INPUTS["label"]]
    np.testing.assert_allclose(blocks["time"], plain["time"] + rows, atol=1e-6)


def test_the_mean_of_the_text_adds_to_the_time():
    _, blocks = predict()
    without = {k: v for k, v in PARAMS.items() if k != "add_embedding"}
    _, plain = predict(
        UNet(dataclasses.replace(SPEC, pooled_text=False), CHANNELS, CLASSES), without
    )
    means = [row[used].mean(0) for row, used in zip(INPUTS["context"], INPUTS["mask"], strict=True)]
    layer = PARAMS["add_embedding"]
    expected = plain["time"] + np.stack(means) @ layer["kernel"] + layer["bias"]
    np.testing.assert_allclose(blocks["time"], expected, atol=1e-5)


def test_the_place_of_a_pixel_is_part_of_the_input():
    """Without positions a flat picture without borders is flat inside; with them it is not."""
    flat = np.ones((BATCH, 40, 40, CHANNELS), np.float32)
    inside = slice(16, 24)  # farther from the border than eight 3x3 convolutions reach
    for positions in (False, True):
        network = UNet(dataclasses.replace(PLAIN, positions=positions), CHANNELS)
        params = random_parameters(network, **{**INPUTS, "x": flat})
        output, _ = predict(network, params, x=flat)
        spread = np.ptp(output[:, inside, inside], axis=(1, 2)).max()
        assert (spread > 1e-2) == positions


def test_remat_changes_neither_values_nor_gradients():
    keys = jax.random.split(jax.random.key(0), BATCH)
    weights = normal(BATCH, *SIZE, CHANNELS)

    spec = dataclasses.replace(PLAIN, dropout=0.3)
    params = random_parameters(UNet(spec, CHANNELS), **INPUTS)

    def value_and_gradient(remat):
        network = UNet(spec, CHANNELS, remat=remat)

        def loss(params):
            return (network.apply({"params": params}, **INPUTS, keys=keys)[0] * weights).sum()

        return jax.jit(jax.value_and_grad(loss))(params)

    agree(value_and_gradient(True), value_and_gradient(False), 1e-5)


def test_bfloat16_is_close_to_float32():
    exact, _ = predict()
    output, blocks = predict(UNet(SPEC, CHANNELS, CLASSES, dtype=jnp.bfloat16))
    assert output.dtype == jnp.float32
    assert {block.dtype for block in blocks.values()} == {jnp.dtype(jnp.bfloat16)}
    agree(output, exact, 0.05)


def test_training_starts_from_zero_only_if_asked():
    init = lambda net: jax.jit(net.init, compiler_options=QUICK)(jax.random.key(0), **INPUTS)  # noqa: E731
    spec = dataclasses.replace(PLAIN, depth=(0,))  # the middle alone attends
    zero = UNet(spec, CHANNELS)
    variables = init(zero)
    output, blocks = predict(zero, variables["params"])
    np.testing.assert_array_equal(output, np.zeros_like(output))
    assert np.abs(blocks["up_0"]).max() > 0.01
    last = {"down_blocks_0": "resnets_0/conv2", "mid_block": "attentions_0/proj_out"}
    for block, path in last.items():
        outer, inner = path.split("/")
        kernel = variables["params"][block][outer][inner]["kernel"]
        np.testing.assert_array_equal(kernel, np.zeros_like(kernel))
    plain = UNet(dataclasses.replace(spec, zero_init=False), CHANNELS)
    variables = init(plain)
    assert np.abs(predict(plain, variables["params"])[0]).std() > 0.01


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (9, 7), (18, 10)])
def test_any_image_size_comes_back(size):
    network = UNet(dataclasses.replace(SPEC, widths=(8, 8, 8), depth=(0, 1, 0), heads=(1, 2, 2)), 6)
    struct = jax.ShapeDtypeStruct
    arguments = struct((2, *size, CHANNELS), jnp.float32), struct((2,), jnp.float32)
    text = struct((2, LENGTH, CONTEXT), jnp.float32)
    output, _ = jax.eval_shape(network.init_with_output, jax.random.key(0), *arguments, text)[0]
    assert output.shape == (2, *size, 6)


@pytest.mark.parametrize(
    "name, context, parameters", [("sd15", 768, 859_520_964), ("sd21", 1024, 865_910_724)]
)
def test_the_published_number_of_parameters(name, context, parameters):
    struct = jax.ShapeDtypeStruct
    arguments = struct((1, 8, 8, 4), jnp.float32), struct((1,), jnp.float32)
    tree = shapes(UNet(UNETS[name], 4), *arguments, struct((1, 77, context), jnp.float32))
    assert count(tree) == parameters
