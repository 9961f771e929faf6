"""The 3x3 convolution is XLA's, in values and gradients, whichever way a CPU takes."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.parameters import agree
from vision_lang.models.convolution import Conv3x3, convolve

RNG = np.random.default_rng(5)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("size, channels", [((3, 4), 2), ((9, 8), 2), ((9, 8), 130)])
def test_values_and_gradients_are_those_of_xla(size, channels, padding):
    x, kernel = normal(2, *size, channels), normal(3, 3, channels, 3)

    def xla(x, kernel):
        layout = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=layout)

    weights = normal(*jax.eval_shape(xla, x, kernel).shape)

    def value_and_gradients(function):
        output, pull = jax.vjp(function, x, kernel)
        return output, pull(weights)

    agree(
        jax.jit(lambda: value_and_gradients(lambda *a: convolve(*a, padding)))(),
        jax.jit(lambda: value_and_gradients(xla))(),
        1e-5,
    )


def test_parameters_are_those_of_linen():
    x, key = normal(2, 5, 5, 4), jax.random.key(0)
    theirs, ours = nn.Conv(6, (3, 3)), Conv3x3(6)
    variables = theirs.init(key, x)
    jax.tree.map(np.testing.assert_array_equal, ours.init(key, x), variables)
    variables["params"]["bias"] = normal(6)
    agree(ours.apply(variables, x), theirs.apply(variables, x), 1e-6)
    output: Any = Conv3x3(6, dtype=jnp.bfloat16).apply(variables, x)
    assert output.dtype == jnp.bfloat16


def test_only_a_cpu_takes_patches():
    def gradients(x, kernel):
        return jax.grad(lambda *a: convolve(*a, "SAME").sum(), (0, 1))(x, kernel)

    traced = jax.jit(gradients).trace(normal(2, 4, 4, 3), normal(3, 3, 3, 3))
    for platform, found in (("cpu", False), ("cuda", True), ("tpu", True)):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert ("stablehlo.convolution" in text) == found
        assert ("stablehlo.dot_general" in text) != found
