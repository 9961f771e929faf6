"""What the machine can compute at most: one matrix product, one convolution, as each library does
it. A step's share of the limit is taken of the faster of the two."""

from __future__ import annotations

from collections.abc import Callable

from experiments.speed import peers
from experiments.speed.case import OURS, Case, Contest, Options

CHANNELS, PIXELS = 128, 32


def _side(options: Options) -> int:
    return options.size(cpu=3072, cuda=8192, small=256)


def _batch(options: Options) -> int:
    return options.size(cpu=64, cuda=512, small=2)


def _product_flops(options: Options) -> int:
    return 2 * _side(options) ** 3


def _convolution_flops(options: Options) -> int:
    return 2 * _batch(options) * PIXELS**2 * 9 * CHANNELS**2


def _xla(options: Options, flops: int, make: Callable) -> Contest:
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_num_cpu_devices", 1)  # with all threads
    dtype = jnp.bfloat16 if options.device == "cuda" else jnp.float32
    function, arguments = make(jax, jnp, dtype)
    compiled = jax.jit(function)

    def unit() -> None:
        compiled(*arguments).block_until_ready()

    return Contest(unit, flops={"hand": flops})


def _matmul_xla(options: Options) -> Contest:
    def make(jax, jnp, dtype):
        x = jnp.ones((_side(options),) * 2, dtype)
        return jnp.matmul, (x, x)

    return _xla(options, _product_flops(options), make)


def _convolution_xla(options: Options) -> Contest:
    def make(jax, jnp, dtype):
        x = jnp.ones((_batch(options), PIXELS, PIXELS, CHANNELS), dtype)
        kernel = jnp.ones((3, 3, CHANNELS, CHANNELS), dtype)
        numbers = ("NHWC", "HWIO", "NHWC")
        convolve = lambda x, k: jax.lax.conv_general_dilated(  # noqa: E731
            x, k, (1, 1), "SAME", dimension_numbers=numbers
        )
        return convolve, (x, kernel)

    return _xla(options, _convolution_flops(options), make)


def _torch(options: Options, flops: int, make: Callable) -> Contest:
    torch = peers.set_up(options)
    dtype = torch.bfloat16 if options.device == "cuda" else torch.float32
    function, arguments = make(torch, {"dtype": dtype, "device": options.device})

    def unit() -> None:
        with torch.inference_mode():
            function(*arguments)
        peers.finish(options)

    return Contest(unit, flops={"hand": flops})


def _matmul_torch(options: Options) -> Contest:
    def make(torch, of):
        x = torch.ones(_side(options), _side(options), **of)
        return torch.matmul, (x, x)

    return _torch(options, _product_flops(options), make)


def _convolution_torch(options: Options) -> Contest:
    def make(torch, of):
        last = {"memory_format": torch.channels_last}
        x = torch.ones(_batch(options), CHANNELS, PIXELS, PIXELS, **of).to(**last)
        kernel = torch.ones(CHANNELS, CHANNELS, 3, 3, **of).to(**last)
        return lambda x, k: torch.nn.functional.conv2d(x, k, padding=1), (x, kernel)

    return _torch(options, _convolution_flops(options), make)


CASES = {
    "ceiling_matmul": Case(
        "matrix product, the machine's limit", {OURS: _matmul_xla, "torch": _matmul_torch}
    ),
    "ceiling_convolution": Case(
        "3x3 convolution of 128 channels, the machine's limit",
        {OURS: _convolution_xla, "torch": _convolution_torch},
    ),
}
