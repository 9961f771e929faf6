"""The head by angle against its papers' equations in float64."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from vision_lang.models import margin
from vision_lang.models.margin import MarginHead, MarginSpec


@pytest.mark.parametrize("kind", list(margin.MARGINS))
def test_logits_are_those_of_the_paper(kind):
    random = np.random.default_rng(0)
    x = random.normal(size=(16, 5)).astype(np.float32)
    label = random.integers(0, 4, 16)
    spec = MarginSpec(kind, width=3, scale=20.0, margin=0.4)
    head = MarginHead(spec, classes=4)
    variables = head.init(jax.random.key(0), x)
    embedding = np.float64(variables["params"]["embedding"]["kernel"])
    table = np.float64(variables["params"]["classes"])
    features = x @ embedding
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    theta = np.arccos(features @ (table / np.linalg.norm(table, axis=1, keepdims=True)).T)
    wanted = np.cos(theta)
    rows = np.arange(16)
    if kind == "cosface":
        wanted[rows, label] -= 0.4
    else:
        beyond = theta > np.pi - 0.4  # where the paper's form would rise again
        assert 0 < beyond[rows, label].sum() < 4
        harder = np.where(beyond, np.cos(theta) + np.cos(0.4) - 1, np.cos(theta + 0.4))
        wanted[rows, label] = harder[rows, label]
    logits, found = head.apply(variables, x, label)
    np.testing.assert_allclose(logits, 20 * wanted, atol=1e-4)
    np.testing.assert_allclose(found, features, atol=1e-5)
    plain, _ = head.apply(variables, x)
    np.testing.assert_allclose(plain, 20 * np.cos(theta), atol=1e-4)


@pytest.mark.parametrize("kind", list(margin.MARGINS))
def test_a_larger_angle_is_never_better(kind):
    theta = np.linspace(0, np.pi, 1001)
    found = np.asarray(margin.MARGINS[kind](np.cos(theta).astype(np.float32), 0.5))
    assert (np.diff(found) <= 1e-6).all() and (found <= np.cos(theta) + 1e-6).all()
