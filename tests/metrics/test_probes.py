"""The linear probe at its optimum, against Newton's method; neighbours against a sort."""

from __future__ import annotations

import numpy as np
import pytest

from vision_lang.errors import InputError
from vision_lang.metrics import arrays, probes

RNG = np.random.default_rng(0)
CENTRES = 1.5 * RNG.normal(size=(4, 5))


def clusters(count, seed):
    """Features [count, 5] on odd scales around one centre per class, and labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, size=count)
    return (CENTRES[labels] + rng.normal(size=(count, 5))) * [1, 100, 0.01, 3, 1] + 7.0, labels


def loss_and_gradient(weights, bias, x, labels, l2):
    """The objective with loops over examples: no arithmetic is shared with the probe."""
    loss = 0.5 * l2 * np.sum(weights**2)
    g_weights, g_bias = l2 * weights, np.zeros_like(bias)
    for row, label in zip(x, labels, strict=True):
        e = np.exp(row @ weights + bias)
        p = e / e.sum()
        loss -= np.log(p[label]) / len(x)
        error = p - np.eye(len(bias))[label]
        g_weights = g_weights + np.outer(row, error) / len(x)
        g_bias = g_bias + error / len(x)
    return loss, g_weights, g_bias


def newton(x, labels, classes, l2):
    """The optimum by Newton's method with the whole Hessian; one bias direction is free."""
    n, d = x.shape
    ones = np.hstack([x, np.ones((n, 1))])  # [N, D + 1]
    theta = np.zeros((d + 1, classes))
    penalty = np.repeat(np.append(np.full(d, l2), 0.0), classes)
    for _ in range(30):
        z = np.exp(ones @ theta)
        p = z / z.sum(axis=1, keepdims=True)
        gradient = (ones.T @ (p - np.eye(classes)[labels]) / n).ravel() + penalty * theta.ravel()
        middle = np.einsum("nc,ck->nck", p, np.eye(classes)) - np.einsum("nc,nk->nck", p, p)
        hessian = np.einsum("ni,nck,nj->icjk", ones, middle, ones) / n
        hessian = hessian.reshape(len(penalty), -1) + np.diag(penalty)
        theta -= np.linalg.lstsq(hessian, gradient, rcond=1e-12)[0].reshape(theta.shape)
    return theta[:-1], theta[-1]


@pytest.mark.parametrize("l2", [1e-4, 1e-3, 1.0])
def test_the_probe_is_at_the_optimum(l2):
    features, labels = clusters(120, 1)
    probe = probes.fit_linear_probe(features, labels, 4, l2=l2)
    x = (features - features.mean(0)) / features.std(0)
    np.testing.assert_allclose(probe.logits(features), x @ probe.weights + probe.bias, rtol=1e-9)
    _, g_weights, g_bias = loss_and_gradient(probe.weights, probe.bias, x, labels, l2)
    assert max(np.abs(g_weights).max(), np.abs(g_bias).max()) < 2e-6
    weights, bias = newton(x, labels, 4, l2)
    # The objective is strongly convex: weights are as close as the gradient over l2, or closer.
    norm = np.sqrt(np.square(g_weights).sum() + np.square(g_bias).sum())
    assert np.linalg.norm(probe.weights - weights) < norm / l2
    np.testing.assert_allclose(probe.weights, weights, atol=5e-3)
    np.testing.assert_allclose(probe.bias, bias, atol=5e-3)


def test_the_probe_learns_what_carries_over_and_is_the_same_each_time():
    features, labels = clusters(400, 1)
    probe = probes.fit_linear_probe(features, labels, 4)
    fresh, truth = clusters(400, 2)
    nearest = np.square(fresh[:, None] - (CENTRES * [1, 100, 0.01, 3, 1] + 7.0)) / np.square(
        [1, 100, 0.01, 3, 1]
    )
    best = np.mean(nearest.sum(axis=2).argmin(axis=1) == truth)  # nobody can do better
    assert best > 0.8
    assert np.mean(probe.logits(fresh).argmax(axis=1) == truth) > best - 0.03
    again = probes.fit_linear_probe(features.astype(np.float64), labels, 4)
    np.testing.assert_array_equal(probe.weights, again.weights)


def test_a_constant_column_and_a_class_without_examples():
    features, labels = clusters(60, 1)
    plain = probes.fit_linear_probe(features, labels, 4, l2=0.1)
    more = np.hstack([features, np.full((60, 1), 0.1)])
    probe = probes.fit_linear_probe(more, labels, 4, l2=0.1)
    assert probe.scale[-1] == 1.0 and np.all(np.abs(probe.weights[-1]) < 1e-12)
    np.testing.assert_allclose(probe.logits(more), plain.logits(features), atol=1e-9)
    five = probes.fit_linear_probe(features, labels, 5, l2=0.1).logits(features)
    assert np.all(five[:, 4] < five[:, :4].max(axis=1))


def naive_votes(x, labels, queries, classes, k, temperature):
    votes = np.zeros((len(queries), classes))
    for i, q in enumerate(queries):
        cosine = [q @ row / np.sqrt((q @ q) * (row @ row)) for row in x]
        near = sorted(range(len(x)), key=lambda j: (-cosine[j], j))[:k]
        for j in near:
            votes[i, labels[j]] += np.exp(cosine[j] / temperature)
    return votes / votes.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("entries", [2**24, 200], ids=["whole", "sliced"])
@pytest.mark.parametrize("k, temperature", [(1, 0.07), (20, 0.07), (7, 1.0), (60, 0.3)])
def test_neighbours_against_a_sort(monkeypatch, k, temperature, entries):
    monkeypatch.setattr(arrays, "SLICE_ENTRIES", entries)
    x, queries = RNG.normal(size=(60, 5)), RNG.normal(size=(25, 5))
    labels = RNG.integers(0, 4, size=60)
    got = probes.nearest_neighbours(x, labels, queries, 4, k=k, temperature=temperature)
    np.testing.assert_allclose(got, naive_votes(x, labels, queries, 4, k, temperature), rtol=1e-9)


def test_of_equally_near_examples_the_first_are_taken():
    similarity = RNG.integers(0, 4, size=(50, 30)).astype(float)
    for k in (1, 4, 29, 30):
        expected = np.sort(np.argsort(-similarity, axis=1, kind="stable")[:, :k], axis=1)
        np.testing.assert_array_equal(probes._first_k(similarity, k), expected)


def test_a_small_temperature_does_not_overflow():
    x = np.eye(3)
    got = probes.nearest_neighbours(x, np.arange(3), x, 3, k=2, temperature=1e-4)
    np.testing.assert_allclose(got, np.eye(3), atol=1e-12)


def test_refusals():
    features, labels = clusters(30, 1)
    with pytest.raises(InputError, match="after 2 steps"):
        probes.fit_linear_probe(features, labels, 4, steps=2)
    with pytest.raises(InputError, match="without a solution"):
        probes.fit_linear_probe(features, labels, 4, l2=0.0)
    with pytest.raises(InputError, match="is not in 0 ... 2"):
        probes.fit_linear_probe(features, labels, 3)
    with pytest.raises(InputError, match="5 dimensions, not 4"):
        probes.fit_linear_probe(features, labels, 4).logits(features[:, :4])
    with pytest.raises(InputError, match="k = 31 of 30"):
        probes.nearest_neighbours(features, labels, features, 4, k=31)
    with pytest.raises(InputError, match="temperature"):
        probes.nearest_neighbours(features, labels, features, 4, temperature=0.0)
