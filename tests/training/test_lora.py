"""Low-rank updates: they begin at the frozen kernel, train alone, and readers see them merged."""

from __future__ import annotations

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from vision_lang import generate, main
from vision_lang.errors import InputError
from vision_lang.runs import checkpoint
from vision_lang.training import lora, state, stored

CONFIG = ConfigDict({"rank": 2, "alpha": 6.0, "pattern": "net/(conv|dense)/kernel"})


SHAPES = {
    "net/conv/kernel": (3, 3, 4, 5),
    "net/dense/kernel": (6, 7),
    "net/dense/bias": (7,),
    "net/free/kernel": (4, 4),
}


def changed(**fields) -> ConfigDict:
    return ConfigDict(CONFIG.to_dict() | fields)


def drawn(shapes: dict) -> dict:
    rng = np.random.default_rng(0)
    return {n: jnp.asarray(rng.standard_normal(s), jnp.float32) for n, s in shapes.items()}


def test_they_begin_at_the_kernels():
    own = drawn(SHAPES)
    updates = lora.init(own, CONFIG, jax.random.key(0))
    assert set(updates) == {f"net/{n}/{x}" for n in ("conv", "dense") for x in ("lora_a", "lora_b")}
    merged = lora.merge(own | updates, 3.0)
    assert merged.keys() == own.keys()
    jax.tree.map(np.testing.assert_array_equal, merged, own)


def test_merging_is_alpha_over_rank_a_b():
    own = drawn(SHAPES)
    updates = lora.init(own, CONFIG, jax.random.key(0))
    updates = drawn({name: x.shape for name, x in updates.items()})
    merged = lora.merge(own | updates, lora.scale(ConfigDict({"lora": CONFIG})))
    for name in ("conv", "dense"):
        a, b = (np.asarray(updates[f"net/{name}/lora_{x}"], np.float64) for x in "ab")
        kernel = np.asarray(own[f"net/{name}/kernel"], np.float64)
        expected = kernel + 6.0 / 2 * (a @ b).reshape(kernel.shape)
        np.testing.assert_allclose(merged[f"net/{name}/kernel"], expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(merged["net/free/kernel"], own["net/free/kernel"])


def test_a_pattern_without_kernels_and_too_high_a_rank_are_refused():
    with pytest.raises(InputError, match="matches no kernel"):
        lora.init(drawn(SHAPES), changed(pattern="net/bias"), jax.random.key(0))
    with pytest.raises(InputError, match="rank=5 is no less"):
        lora.init(drawn(SHAPES), changed(rank=5), jax.random.key(0))


def test_adapted_kernels_are_frozen_and_everything_else_may_be():
    own = drawn(SHAPES)
    updates = lora.init(own, CONFIG, jax.random.key(0))
    tree = {"params": flax.traverse_util.unflatten_dict(own, sep="/")}
    trainable, frozen, _ = state.split(tree, (), updates)
    assert set(trainable) == set(updates) | {"net/free/kernel", "net/dense/bias"}
    trainable, frozen, _ = state.split(tree, (".*",), updates)
    assert set(trainable) == set(updates) and set(frozen) == set(own)


def test_the_networks_see_merged_kernels_and_their_gradient_is_the_chain_rules():
    own = drawn(SHAPES)
    updates = lora.init(own, CONFIG, jax.random.key(0))
    first = state.create(
        {"params": flax.traverse_util.unflatten_dict(own, sep="/")}, (".*",), updates, 3.0
    )
    factors = jax.random.normal(jax.random.key(1), (6, 7))

    def loss(params):
        return (state.variables(params, first)["params"]["net"]["dense"]["kernel"] * factors).sum()

    gradient = jax.grad(loss)(first.params)
    a = updates["net/dense/lora_a"]
    np.testing.assert_allclose(gradient["net/dense/lora_b"], 3 * a.T @ factors, rtol=1e-5)
    assert not np.any(gradient["net/dense/lora_a"])  # B is zero yet
    assert not np.any(gradient["net/conv/lora_b"])


@pytest.mark.slow
def test_a_run_trains_them_alone_and_its_readers_see_merged_kernels(command, trained, tmp_path):
    """A text-to-image run begins with another's weights and adapts its U-Net's middle."""
    run = tmp_path / "run"
    made = command(
        main.main, f"--config={trained}/config.json", f"--workdir={run}", "--config.steps=6",
        f"--config.init.unet={trained}", f"--config.init.text_encoder={trained}",
        f"--config.init.sketch={trained}", "--config.lora.rank=2", "--config.eval_every=0",
        "--config.lora.pattern=unet/mid_block/.*(to_q|to_v|conv1)/kernel",
        "--config.optimizer.frozen=('.*',)", "--config.optimizer.warmup=1",
    )  # fmt: skip
    assert made.code == 0, made.err
    _, parts = checkpoint.restore_part(run / "checkpoints", ["params", "frozen"])
    names = stored.flat(parts["params"])
    assert all(name.endswith(("lora_a", "lora_b")) for name in names) and len(names) == 12
    _, before = stored.weights_of(f"{trained}:ema")
    _, after = stored.weights_of(f"{run}:raw")
    assert before.keys() == after.keys()
    moved = {n for n in before if not np.array_equal(before[n], after[n])}
    ends = ("attn1/to_q/kernel", "attn1/to_v/kernel", "attn2/to_q/kernel", "attn2/to_v/kernel")
    assert len(moved) == 6 and all(n.endswith((*ends, "conv1/kernel")) for n in moved)
    made = command(
        generate.main, f"--run={run}", "--prompt=a red circle", "--num=1", "--steps=2",
        f"--out={tmp_path / 'out.png'}",
    )  # fmt: skip
    assert made.code == 0, made.err
