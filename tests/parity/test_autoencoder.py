"""The autoencoder against diffusers' AutoencoderKL: random weights, both halves."""

from __future__ import annotations

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vision_lang.models.autoencoder import AUTOENCODERS, Autoencoder, AutoencoderSpec

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
from tests.parity.mapping import SIZES, close, our_parameters, randomise  # noqa: E402

pytestmark = pytest.mark.parity

# name -> (sizes, image height and width, channels)
CASES = {
    "one level": (AutoencoderSpec((12,), layers=1, groups=3), (5, 4), 3),
    "two levels, odd": (AutoencoderSpec((8, 16), groups=4, latent_channels=2), (9, 7), 1),
    "the middle doesn't attend": (
        AutoencoderSpec((8, 16), layers=1, groups=8, mid_attention=False),
        (8, 12),
        3,
    ),
    "three levels, no 1x1 convolutions": (
        AutoencoderSpec(
            (8, 16, 16), groups=4, latent_channels=5, use_quant_conv=False,
            use_post_quant_conv=False,
        ),
        (12, 20),
        3,
    ),
    "only the encoder's 1x1 convolution": (
        AutoencoderSpec((16, 8), layers=1, groups=4, use_post_quant_conv=False),
        (6, 6),
        3,
    ),
    "four levels, odd": (AutoencoderSpec((8, 16, 24, 24), groups=8), (23, 33), 3),
    "a single place is left": (AutoencoderSpec((8, 8, 16), layers=1, groups=4), (4, 7), 3),
}  # fmt: skip


def pair(spec: AutoencoderSpec, channels: int):
    """Our network and theirs, of the same sizes."""
    theirs = diffusers.AutoencoderKL(
        in_channels=channels,
        out_channels=channels,
        down_block_types=["DownEncoderBlock2D"] * len(spec.widths),
        up_block_types=["UpDecoderBlock2D"] * len(spec.widths),
        block_out_channels=spec.widths,
        layers_per_block=spec.layers,
        latent_channels=spec.latent_channels,
        norm_num_groups=spec.groups,
        use_quant_conv=spec.use_quant_conv,
        use_post_quant_conv=spec.use_post_quant_conv,
        mid_block_add_attention=spec.mid_attention,
    )
    return Autoencoder(spec, channels), theirs.eval()


def parameters(network: Autoencoder, theirs) -> dict:
    """Their parameters as our tree; {} for those of the meta device, whose shapes are compared."""
    side = network.spec.factor
    image = jax.ShapeDtypeStruct((1, side, side, network.channels), jnp.float32)
    expected = jax.eval_shape(network.init, jax.random.key(0), image)["params"]
    # Named from a level above, or our_parameters takes `encoder` for a group of CLIP's.
    wrapped = torch.nn.ModuleDict({"autoencoder": theirs})
    return our_parameters(wrapped, {"autoencoder": expected}).get("autoencoder", {})


def run(module, images, latents) -> dict[str, np.ndarray]:
    """Their encoding of images, what they decode of it, and of other latents, NHWC."""
    dtype = next(module.parameters()).dtype
    nchw = lambda x: torch.tensor(x, dtype=dtype).permute(0, 3, 1, 2)  # noqa: E731
    with torch.no_grad():
        encoded = module.encode(nchw(images)).latent_dist
        out = {
            "mean": encoded.mean,
            "logvar": encoded.logvar,
            "sample": module.decode(encoded.mode()).sample,
            "decoded": module.decode(nchw(latents)).sample,
        }
    return {name: x.permute(0, 2, 3, 1).numpy() for name, x in out.items()}


@pytest.mark.parametrize("case", CASES)
def test_encoding_and_decoding(case):
    spec, size, channels = CASES[case]
    ours, theirs = pair(spec, channels)
    apply = jax.jit(ours.apply)
    decode = jax.jit(lambda variables, z: ours.apply(variables, z, method="decode"))
    for seed, scale in enumerate(SIZES):
        randomise(theirs, seed, scale)
        variables = {"params": parameters(ours, theirs)}
        rng = np.random.default_rng(seed)
        images = rng.uniform(-1, 1, (3, *size, channels)).astype(np.float32)
        places = [side // spec.factor for side in size]
        latents = rng.normal(size=(3, *places, spec.latent_channels)).astype(np.float32)
        out = apply(variables, images) | {"decoded": decode(variables, latents)}
        reference = run(theirs, images, latents)
        exact = run(copy.deepcopy(theirs).double(), images, latents)
        np.testing.assert_array_equal(out.pop("latents"), out["mean"])
        assert out.keys() == reference.keys()
        for name, value in out.items():
            close(value, reference[name], f"seed {seed}, {name}", exact[name])


def test_the_log_variance_is_clamped():
    ours, theirs = pair(AUTOENCODERS["tiny"], 3)
    randomise(theirs, 0, 1.0)
    with torch.no_grad():
        theirs.quant_conv.weight.mul_(40.0)
    images = np.random.default_rng(0).uniform(-1, 1, (2, 8, 8, 3)).astype(np.float32)
    logvar = ours.apply({"params": parameters(ours, theirs)}, images)["logvar"]
    latents = np.zeros((1, 1, 1, 4), np.float32)
    reference = run(theirs, images, latents)["logvar"]
    assert reference.min() == -30 and reference.max() == 20
    close(logvar, reference, "logvar", run(theirs.double(), images, latents)["logvar"])


def test_the_published_sizes_have_all_names_and_shapes():
    with torch.device("meta"):
        ours, theirs = pair(AUTOENCODERS["sd"], 3)
    parameters(ours, theirs)
