"""VGG against NumPy in float64, its pooling, dropout, precision and sizes. tests/parity compares it
with torchvision's and Keras's."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.parameters import agree, count, random_parameters
from vision_lang.errors import InputError
from vision_lang.models import vgg
from vision_lang.models.vgg import VGG, VGGS, VGGSpec

RNG = np.random.default_rng(4)
CLASSES, BATCH = 3, 4
SPEC = VGGSpec(((3,), (4, 5)), hidden=(6, 7), grid=3)
# name -> (sizes, height and width of the images)
CASES = {
    "dense": (SPEC, (33, 40)),
    "batch norm, 28 px": (dataclasses.replace(SPEC, batch_norm=True, epsilon=0.1), (28, 28)),
    "valid, flattened": (dataclasses.replace(SPEC, padding="VALID", grid=0), (32, 35)),
    "pooled, twice as wide": (dataclasses.replace(SPEC, head="pool", width=2.0), (21, 32)),
    "no head": (dataclasses.replace(SPEC, head="none", batch_norm=True), (32, 32)),
}


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def made(spec, size):
    """The network of `spec`, random variables for it, and images."""
    network, images = VGG(spec, CLASSES), normal(BATCH, *size, 3)
    initialise = SimpleNamespace(init=functools.partial(network.init, train=False))
    variables = {"params": random_parameters(initialise, images)}
    names = [name for name in variables["params"] if name.endswith("_bn")]
    widths = {name: len(variables["params"][name]["scale"]) for name in names}
    variables["batch_stats"] = {
        name: {"mean": 0.3 * normal(n), "var": RNG.uniform(0.5, 2, n).astype(np.float32)}
        for name, n in widths.items()
    }
    return network, variables, images


@functools.cache
def compiled(network):
    return jax.jit(functools.partial(network.apply, train=False))


def in_numpy(spec, variables, images):
    """Logits and intermediates, layer by layer in float64."""
    params, out = variables["params"], {}
    missing = [max(0, 32 - side) for side in images.shape[1:3]]
    x = np.pad(
        images.astype(np.float64), [(0, 0), *((m // 2, m - m // 2) for m in missing), (0, 0)]
    )
    for stage, widths in enumerate(spec.stages, start=1):
        for i in range(1, len(widths) + 1):
            layer = params[f"conv{stage}_{i}"]
            if spec.padding == "SAME":
                x = np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)])
            windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(1, 2))
            x = np.einsum("bhwcij,ijco->bhwo", windows, layer["kernel"]) + layer["bias"]
            if spec.batch_norm:
                norm = params[f"conv{stage}_{i}_bn"]
                stats = variables["batch_stats"][f"conv{stage}_{i}_bn"]
                x = (x - stats["mean"]) / np.sqrt(stats["var"] + spec.epsilon)
                x = x * norm["scale"] + norm["bias"]
            x = out[f"conv{stage}_{i}"] = np.maximum(x, 0)
        x = out[f"pool{stage}"] = pool_in_numpy(x)
    if spec.head == "none":
        return None, out
    if spec.head == "pool":
        x = out["pooled"] = x.mean((1, 2))
    else:
        x = average_in_numpy(x, spec.grid) if spec.grid else x
        x = x.reshape(len(x), -1)
        for i in range(len(spec.hidden)):
            layer = params[f"fc{i + 3}"]
            x = out[f"fc{i + 3}"] = np.maximum(x @ layer["kernel"] + layer["bias"], 0)
    return x @ params["logits"]["kernel"] + params["logits"]["bias"], out


def pool_in_numpy(x):
    batch, height, width, channels = x.shape
    y = np.zeros((batch, height // 2, width // 2, channels), x.dtype)
    for i, j in itertools.product(range(height // 2), range(width // 2)):
        y[:, i, j] = x[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].max(axis=(1, 2))
    return y


def average_in_numpy(x, grid):
    y = np.zeros((x.shape[0], grid, grid, x.shape[3]))
    first = lambda i, n: int(np.floor(i * n / grid))  # noqa: E731
    behind = lambda i, n: int(np.ceil((i + 1) * n / grid))  # noqa: E731
    height, width = x.shape[1:3]
    for i, j in itertools.product(range(grid), range(grid)):
        rows = slice(first(i, height), behind(i, height))
        y[:, i, j] = x[:, rows, first(j, width) : behind(j, width)].mean(axis=(1, 2))
    return y


@pytest.mark.parametrize("case", CASES)
def test_every_layer_is_that_of_numpy(case):
    spec, size = CASES[case]
    network, variables, images = made(spec, size)
    logits, features = compiled(network)(variables, images)
    expected_logits, expected = in_numpy(spec, variables, images)
    assert features.keys() == expected.keys()
    agree(features, expected, 1e-6)
    if spec.head == "none":
        assert logits is None
    else:
        agree(logits, expected_logits, 1e-6)


@pytest.mark.parametrize("size", [(2, 2), (5, 4), (8, 7)])
def test_pooling_is_that_of_numpy_and_its_gradient_linen_s_behind_a_relu(size):
    x, factors = normal(2, *size, 3), normal(2, size[0] // 2, size[1] // 2, 3)
    np.testing.assert_array_equal(vgg.max_pool(jnp.asarray(x)), pool_in_numpy(x))

    def gradient(pool):
        return jax.jit(jax.grad(lambda x: (pool(nn.relu(x)) * factors).sum()))

    ours = gradient(vgg.max_pool)
    linens = gradient(lambda x: nn.max_pool(x, (2, 2), (2, 2)))
    np.testing.assert_array_equal(ours(x), linens(x))
    assert "scatter" in linens.lower(x).as_text()  # so that its absence below says something
    assert "scatter" not in ours.lower(x).as_text()


def test_the_gradient_scatters_nowhere():
    network, variables, images = made(dataclasses.replace(SPEC, batch_norm=True), (32, 35))
    keys = jax.random.split(jax.random.key(0), BATCH)

    def loss(params):
        apply = functools.partial(network.apply, train=True, mutable=["batch_stats"])
        return apply({**variables, "params": params}, images, keys)[0][0].sum()

    assert "scatter" not in jax.jit(jax.grad(loss)).lower(variables["params"]).as_text()


@pytest.mark.parametrize("size, grid", [((7, 7), 7), ((1, 1), 7), ((10, 3), 7), ((12, 9), 2)])
def test_adaptive_average_pooling_is_that_of_numpy(size, grid):
    x = normal(2, *size, 3)
    average = vgg.adaptive_average_pool(jnp.asarray(x), grid)
    np.testing.assert_allclose(average, average_in_numpy(x, grid), atol=1e-6)


def test_dropout_goes_with_the_rows_and_features_stand_before_it():
    network, variables, images = made(SPEC, (32, 32))
    keys = jax.random.split(jax.random.key(0), BATCH)
    apply = compiled(network)
    (whole, features), (plain, undropped) = apply(variables, images, keys), apply(variables, images)
    order = np.array([3, 1])
    part, _ = apply(variables, images[order], keys[order])
    agree(part, whole[order], 1e-6)
    assert (np.abs(whole - plain).max(axis=1) > 1e-3).all()
    fc4 = features.pop("fc4"), undropped.pop("fc4")
    assert np.abs(fc4[0] - fc4[1]).max() > 1e-3  # behind the first dropout
    agree(features, undropped, 1e-6)


def test_a_row_of_weight_0_leaves_the_others_alone_in_training():
    network, variables, images = made(dataclasses.replace(SPEC, batch_norm=True), (32, 32))
    train = jax.jit(functools.partial(network.apply, train=True, mutable=["batch_stats"]))
    weight = np.float32([1, 0, 1, 1])
    other = images.copy()
    other[1] = 100
    (logits, _), stats = train(variables, images, weight=weight)
    (others, _), other_stats = train(variables, other, weight=weight)
    used = weight > 0
    np.testing.assert_array_equal(logits[used], others[used])
    jax.tree.map(np.testing.assert_array_equal, stats, other_stats)
    (unweighted, _), _ = train(variables, images[used])
    agree(unweighted, logits[used], 1e-5)
    assert np.abs(np.asarray(logits - network.apply(variables, images, train=False)[0])).max() > 0.1


def test_bfloat16_is_close_to_float32():
    network, variables, images = made(dataclasses.replace(SPEC, batch_norm=True), (32, 32))
    exact, _ = compiled(network)(variables, images)
    logits, features = compiled(network.clone(dtype=jnp.bfloat16))(variables, images)
    assert logits.dtype == jnp.float32
    assert {x.dtype for x in features.values()} == {jnp.dtype(jnp.bfloat16)}
    agree(logits, exact, 0.05)


def initialised(spec, side, classes=1000):
    """Shapes of the variables and of the outputs; nothing is computed."""
    network = VGG(spec, classes)
    init = functools.partial(network.init_with_output, train=False)
    images = jax.ShapeDtypeStruct((2, side, side, 3), jnp.float32)
    (logits, features), variables = jax.eval_shape(init, jax.random.key(0), images)
    return variables["params"], logits, features


@pytest.mark.parametrize(
    "name, plain, batch_norm",
    [
        ("11", 132_863_336, 132_868_840),
        ("13", 133_047_848, 133_053_736),
        ("16", 138_357_544, 138_365_992),
        ("19", 143_667_240, 143_678_248),
    ],
)
def test_the_published_number_of_parameters(name, plain, batch_norm):
    for expected, normed in ((plain, False), (batch_norm, True)):
        params, logits, features = initialised(
            dataclasses.replace(VGGS[name], batch_norm=normed), 224
        )
        assert count(params) == expected
        assert logits.shape == (2, 1000)
        assert features["pool5"].shape == (2, 7, 7, 512) and features["fc7"].shape == (2, 4096)
    assert len([f for f in features if f.startswith(("conv", "fc"))]) == int(name) - 1


def test_the_small_network_and_a_narrow_one():
    params, _, features = initialised(VGGS["5"], 28, 10)
    sizes = {name: x.shape[1:] for name, x in features.items()}
    assert sizes == {
        "conv1_1": (30, 30, 64), "pool1": (15, 15, 64), "conv2_1": (13, 13, 128),
        "pool2": (6, 6, 128), "conv3_1": (4, 4, 256), "pool3": (2, 2, 256), "fc4": (1024,),
    }  # fmt: skip
    assert params["fc4"]["kernel"].shape == (1024, 1024)
    assert params["logits"]["kernel"].shape == (1024, 10)
    params, _, features = initialised(dataclasses.replace(VGGS["16"], width=0.25), 32, 10)
    assert features["pool5"].shape == (2, 1, 1, 128)
    assert params["fc6"]["kernel"].shape == (49 * 128, 1024)


def test_initialisation_keeps_the_size_of_signals():
    spec = VGGSpec(((32,), (64, 64)), hidden=(512,), grid=2)
    images = normal(4, 32, 32, 3)
    init = jax.jit(functools.partial(VGG(spec, 10).init_with_output, train=False))
    (logits, features), variables = init(jax.random.key(0), images)
    kernel = variables["params"]["conv2_1"]["kernel"]
    assert np.std(kernel) == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.03)
    assert np.std(variables["params"]["logits"]["kernel"]) == pytest.approx(0.01, rel=0.05)
    size = {name: float(np.sqrt((np.asarray(x) ** 2).mean())) for name, x in features.items()}
    assert 0.7 < size["conv2_2"] / size["conv2_1"] < 1.4
    assert np.abs(logits).max() < 1


def test_what_cannot_be_built_is_refused():
    images = normal(1, 32, 32, 3)
    with pytest.raises(InputError, match="'dens'.*mean 'dense'"):
        VGG(dataclasses.replace(SPEC, head="dens"), CLASSES).init(
            jax.random.key(0), images, train=False
        )
    with pytest.raises(ValueError, match="'dense' of a VGG needs a number of classes"):
        VGG(SPEC).init(jax.random.key(0), images, train=False)
