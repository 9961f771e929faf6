"""Augmentation: what a draw may do to a picture, and that it depends on its own key alone."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vision_lang import keys as random_keys
from vision_lang.errors import InputError
from vision_lang.tasks import augmentation
from vision_lang.tasks.augmentation import Augmentation

SIDE = 12
ALL = Augmentation(
    pad=2, brightness=0.4, contrast=0.4, saturation=0.4, erase=0.5, mixup=0.4, cutmix=1.0
)


def pictures(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, SIDE, SIDE, 3), np.uint8)


def keys(count, step=0):
    return random_keys.per_example(random_keys.make(0, "train", step), jnp.arange(count))


@jax.jit
def everything(images, targets, some_keys):
    x = ALL.pictures(images, some_keys)
    return ALL.mix(x, targets, jnp.ones(len(images)), some_keys)


def test_nothing_is_done_where_nothing_is_asked():
    images, targets = pictures(3), np.eye(3, dtype=np.float32)
    x, mixed = Augmentation().mix(
        Augmentation().pictures(images, keys(3)), targets, jnp.ones(3), keys(3)
    )
    np.testing.assert_array_equal(x, images)
    np.testing.assert_array_equal(mixed, targets)


def test_draws_depend_on_the_example_alone():
    """Halves of a batch on two devices give what the whole gives on one; another step does not."""
    images, targets = pictures(8), np.eye(8, dtype=np.float32)
    whole = everything(images, targets, keys(8))
    for half in (slice(0, 4), slice(4, 8)):
        part = everything(images[half], targets[half], keys(8)[half])
        for a, b in zip(part, whole, strict=True):
            np.testing.assert_allclose(a, b[half], rtol=1e-5, atol=1e-3)
    other = everything(images, targets, keys(8, step=1))
    assert all((np.abs(a - b).reshape(8, -1).max(1) > 0).all() for a, b in zip(whole, other))  # noqa: B905


def test_a_shift_is_a_window_of_the_mirrored_picture():
    picture = pictures(1)[0].astype(np.float32)
    padded = np.pad(picture, ((2, 2), (2, 2), (0, 0)), mode="symmetric")
    windows = {
        padded[i : i + SIDE, j : j + SIDE].tobytes(): (i, j) for i in range(5) for j in range(5)
    }
    moved = [augmentation.shift(picture, key, 2) for key in keys(300)]
    found = [windows[np.asarray(m).tobytes()] for m in moved]
    assert set(found) == set(windows.values())  # each of the 25, 12 times on average


def test_jitter_keeps_grey_grey_and_moves_brightness_both_ways():
    grey = np.full((SIDE, SIDE, 3), 100.0, np.float32)
    found = np.asarray(jax.vmap(lambda k: augmentation.jitter(grey, k, (0.5, 0.5, 0.5)))(keys(200)))
    np.testing.assert_allclose(found.max(-1), found.min(-1), atol=1e-3)
    level = found.mean((1, 2, 3))
    assert 50 <= level.min() < 60 and 140 < level.max() <= 150


def test_erasing_happens_as_often_and_as_large_as_it_should():
    black = np.zeros((32, 32, 3), np.float32)
    found = np.asarray(jax.vmap(lambda k: augmentation.erase(black, k, 0.25))(keys(2_000)))
    share = (found > 0).any(-1).mean((1, 2))
    assert np.isclose((share > 0).mean(), 0.25, atol=0.03)
    assert share[share > 0].min() > 0.0 and share.max() < 0.36


@pytest.mark.parametrize("augment", [Augmentation(mixup=0.5), Augmentation(cutmix=1.0)])
def test_a_label_has_the_share_that_its_picture_has(augment):
    """Pictures of one colour each, partners 0 and 255: the mean says how much of each is there."""
    count = 64
    x = jnp.broadcast_to(jnp.arange(count)[:, None, None, None] % 2, (count, SIDE, SIDE, 3)) * 255.0
    targets = jax.nn.one_hot(jnp.arange(count) % 2, 2)
    mixed, labels = augment.mix(x, targets, jnp.ones(count), keys(count))
    np.testing.assert_allclose(np.asarray(mixed).mean((1, 2, 3)) / 255, labels[:, 1], atol=1e-5)
    np.testing.assert_allclose(labels.sum(1), 1, atol=1e-6)
    own = np.asarray((labels * targets).sum(1))
    assert own.min() < 0.3 and own.max() > 0.7
    values = np.unique(np.asarray(mixed))
    assert (len(values) == 2) == bool(augment.cutmix)  # a rectangle is cut, not blended


def test_a_partner_that_counts_nothing_is_not_mixed_in():
    images, targets = pictures(4).astype(np.float32), np.eye(4, dtype=np.float32)
    x, labels = ALL.mix(images, targets, jnp.array([1.0, 0, 1, 1]), keys(4))
    np.testing.assert_array_equal(x[0], images[0])
    np.testing.assert_array_equal(labels[0], targets[0])
    assert (np.asarray(x[2]) != images[2]).any()
    with pytest.raises(InputError, match="pairs.* 3 "):
        ALL.mix(images[:3], targets[:3], jnp.ones(3), keys(3))
