"""The sketch of a text: padding, where a cell's pixels lie, and that it is learned to be a mean."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tests.models.parameters import random_parameters
from vision_lang.models.sketch import Sketch, SketchSpec

SIDE, LENGTH, WIDTH = 6, 5, 8
SKETCH = Sketch(SketchSpec(width=8, layers=2, heads=2, cells=2, hints=2), SIDE)
RNG = np.random.default_rng(3)
CONTEXT = RNG.normal(size=(3, LENGTH, WIDTH)).astype(np.float32)
MASK = np.arange(LENGTH) < np.array([[2], [5], [1]])
PARAMS = random_parameters(SKETCH, CONTEXT, MASK)


def draw(context=CONTEXT, mask=MASK, params=PARAMS):
    """The picture and, as further channels, the hints."""
    return np.concatenate(SKETCH.apply({"params": params}, context, mask), axis=-1)


def test_padding_and_other_rows_change_nothing():
    picture = draw()
    assert picture.shape == (3, SIDE, SIDE, 3 + 2) and picture.dtype == np.float32
    changed = np.where(MASK[..., None], CONTEXT, 9.0)
    np.testing.assert_array_equal(draw(changed), picture)
    np.testing.assert_allclose(draw(CONTEXT[:, :2], MASK[:, :2])[::2], picture[::2], atol=1e-5)
    np.testing.assert_allclose(draw(CONTEXT[[2]], MASK[[2]])[0], picture[2], atol=1e-5)
    assert np.abs(draw(CONTEXT + 1.0) - picture).max() > 1e-2


def test_a_cell_is_a_square_of_the_picture():
    """Cell (1, 0) alone changes when its own vector does: rows 3 to 5, columns 0 to 2."""
    table = PARAMS["position_embedding"]["embedding"].copy()
    table[2] = RNG.normal(size=table.shape[1])
    changed = PARAMS | {"position_embedding": {"embedding": table}}
    moved = (np.abs(draw(params=changed) - draw()) > 1e-6).all(axis=(0, 3))
    wanted = np.zeros((SIDE, SIDE), bool)
    wanted[3:, :3] = True
    np.testing.assert_array_equal(moved, wanted)


def test_it_learns_the_mean_of_what_a_text_goes_with():
    """Two texts, each with two pictures in turn: what is learned is the mean of the two."""
    context, mask = jnp.asarray(CONTEXT[:2]), None
    pictures = RNG.uniform(-1, 1, (2, 2, SIDE, SIDE, 3)).astype(np.float32)  # [text, picture, ...]
    params = SKETCH.init(jax.random.key(0), context, mask)["params"]
    np.testing.assert_array_equal(draw(context, mask, params), 0)  # nothing is known at first
    optimizer = optax.adam(optax.cosine_decay_schedule(0.02, 300))

    @jax.jit
    def step(_, carry):
        params, state = carry

        def loss(p):
            picture = SKETCH.apply({"params": p}, context, mask)[0]
            return jnp.square(picture[:, None] - pictures).mean()

        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    params, _ = jax.lax.fori_loop(0, 300, step, (params, optimizer.init(params)))
    learned = draw(context, mask, params)
    np.testing.assert_allclose(learned[..., :3], pictures.mean(1), atol=0.02)
    np.testing.assert_array_equal(learned[..., 3:], 0)  # no picture teaches the hints
