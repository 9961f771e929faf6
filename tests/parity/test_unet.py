"""UNet against diffusers' UNet2DConditionModel: random weights, every block's output."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vision_lang.models.unet import UNETS, UNet, UNetSpec

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
from tests.parity.mapping import SIZES, agree, our_parameters, randomise  # noqa: E402

pytestmark = pytest.mark.parity

CHANNELS, LENGTH, CONTEXT = 4, 6, 12
# name -> (sizes, image height and width, classes)
CASES = {
    "1.x": (UNetSpec((16, 32), depth=(1, 0), heads=(4, 4), groups=4), (8, 8), 0),
    "1.x, 9 x 7": (
        UNetSpec((8, 16, 24), (1, 1, 0), heads=(2, 2, 2), layers=1, groups=8),
        (9, 7),
        0,
    ),
    "2.x, 18 x 10": (
        UNetSpec((16, 32, 48), (1, 1, 0), heads=(1, 2, 3), groups=4, linear_projection=True),
        (18, 10),
        0,
    ),
    "deep attention": (
        UNetSpec((8, 16), depth=(1, 2), heads=(1, 4), layers=1, groups=4, linear_projection=True),
        (6, 8),
        0,
    ),
    "attention below only, classes": (
        UNetSpec((8, 16), depth=(0, 1), heads=(1, 2), layers=1, groups=4),
        (8, 8),
        5,
    ),
    "the time scales and shifts": (
        UNetSpec((8, 16), (1, 0), heads=(2, 2), layers=1, groups=4, scale_shift=True),
        (6, 8),
        0,
    ),
    "a single level, classes": (UNetSpec((12,), (1,), heads=(3,), groups=3), (5, 4), 3),
}


def pair(spec: UNetSpec, context: int, classes: int):
    """Our network and theirs, of the same sizes."""
    kinds = ["CrossAttn" * bool(depth) for depth in spec.depth]
    # The configs of 1.x give one number for all levels.
    heads = spec.heads[0] if len(set(spec.heads)) == 1 else spec.heads
    theirs = diffusers.UNet2DConditionModel(
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        down_block_types=[f"{kind}DownBlock2D" for kind in kinds],
        up_block_types=[f"{kind}UpBlock2D" for kind in reversed(kinds)],
        block_out_channels=spec.widths,
        layers_per_block=spec.layers,
        norm_num_groups=spec.groups,
        cross_attention_dim=context,
        transformer_layers_per_block=tuple(max(depth, 1) for depth in spec.depth),
        attention_head_dim=heads,
        use_linear_projection=spec.linear_projection,
        num_class_embeds=classes or None,
        resnet_time_scale_shift="scale_shift" if spec.scale_shift else "default",
    )
    return UNet(spec, CHANNELS, classes), theirs.eval()


def expected_parameters(network: UNet, context: int):
    struct = jax.ShapeDtypeStruct
    arrays = struct((1, 8, 8, CHANNELS), jnp.float32), struct((1,), jnp.float32)
    text, label = struct((1, 2, context), jnp.float32), struct((1,), jnp.int32)
    return jax.eval_shape(network.init, jax.random.key(0), *arrays, text, label=label)["params"]


def watch(module) -> dict:
    """What the blocks of diffusers' network give from now on, under our names."""
    seen: dict = {}

    def keep(name, sub_module):
        def hook(_, __, output):
            seen[name] = output[0] if isinstance(output, tuple) else output

        sub_module.register_forward_hook(hook)

    keep("time", module.time_embedding)
    if module.class_embedding is not None:
        keep("class", module.class_embedding)
    keep("mid", module.mid_block)
    for i, (down, up) in enumerate(zip(module.down_blocks, module.up_blocks, strict=True)):
        keep(f"down_{i}", down)
        keep(f"up_{i}", up)
    return seen


@pytest.mark.parametrize("masked", [False, True], ids=["all positions", "masked"])
@pytest.mark.parametrize("case", CASES)
def test_blocks(case, masked):
    spec, size, classes = CASES[case]
    ours, theirs = pair(spec, CONTEXT, classes)
    expected = expected_parameters(ours, CONTEXT)
    apply, seen = jax.jit(ours.apply), watch(theirs)
    time = np.asarray([0.0, 1.0, 500.25, 999.0], np.float32)
    batch = len(time)
    for seed, scale in enumerate(SIZES):
        randomise(theirs, seed, scale)
        params = our_parameters(theirs, expected)
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(batch, *size, CHANNELS)).astype(np.float32)
        text = rng.normal(size=(batch, LENGTH, CONTEXT)).astype(np.float32)
        label = rng.integers(classes, size=batch) if classes else None
        mask = np.arange(LENGTH) < rng.integers(1, LENGTH + 1, size=(batch, 1)) if masked else None
        output, blocks = apply({"params": params}, x, time, text, mask, label)
        reference = theirs(
            torch.tensor(x).permute(0, 3, 1, 2),
            torch.tensor(time),
            torch.tensor(text),
            class_labels=None if label is None else torch.tensor(label),
            encoder_attention_mask=None if mask is None else torch.tensor(mask),
        ).sample
        states = dict(seen)
        states["time"] = states["time"] + states.pop("class", 0.0)
        assert states.keys() == blocks.keys()
        for name, state in states.items():
            state = state if name == "time" else state.permute(0, 2, 3, 1)
            agree(blocks[name], state, f"seed {seed}, {name}")
        agree(output, reference.permute(0, 2, 3, 1), f"seed {seed}, output")


@pytest.mark.parametrize("name, context", [("sd15", 768), ("sd21", 1024)])
def test_the_published_sizes_have_all_names_and_shapes(name, context):
    with torch.device("meta"):
        ours, theirs = pair(UNETS[name], context, 0)
    our_parameters(theirs, expected_parameters(ours, context))
