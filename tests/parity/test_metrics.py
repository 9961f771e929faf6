"""Metrics of arrays against torch-fidelity, prdc and scikit-learn, on the same features."""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest
from scipy import special

from vision_lang.metrics import classification, kernel, neighbours, probes, verification
from vision_lang.metrics.frechet import frechet_distance

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.parity

RNG = np.random.default_rng(0)
MIX = RNG.normal(size=(128, 128)) * np.logspace(0, -2, 128)
A = RNG.normal(size=(2000, 128)) @ MIX + 0.2
B = RNG.normal(size=(1500, 128)) @ MIX @ np.diag(RNG.uniform(0.5, 1.5, 128))
LABELS = RNG.integers(0, 5, size=400)
SCORES = RNG.normal(size=(400, 5)) + np.eye(5)[LABELS]


@pytest.fixture
def fidelity(monkeypatch):
    """Imports modules of torch-fidelity, which needs torchvision for its data sets and networks.

    None of these is used here, so empty classes stand for them: a torchvision that was not built
    for the installed torch fails on import.
    """
    for name in ("", ".datasets", ".models", ".transforms", ".transforms.functional"):
        module = types.ModuleType(f"torchvision{name}")
        module.__getattr__ = lambda name: type(name, (), {})  # type: ignore[method-assign]
        monkeypatch.setitem(sys.modules, module.__name__, module)
        if name:
            parent, _, child = module.__name__.rpartition(".")
            setattr(sys.modules[parent], child, module)
    return lambda name: pytest.importorskip(f"torch_fidelity.{name}")


def test_frechet_distance(fidelity):
    fid = fidelity("metric_fid")
    a, b = (fid.fid_features_to_statistics(torch.tensor(x)) for x in (A, B))
    theirs = fid.fid_statistics_to_metric(a, b, verbose=False)["frechet_inception_distance"]
    np.testing.assert_allclose(frechet_distance(A, B), theirs, rtol=1e-9)


def test_kernel_distance_on_the_same_subsets(fidelity, monkeypatch):
    kid = fidelity("metric_kid")
    seen = np.random.RandomState(2020)  # noqa: NPY002 - theirs: one stream for both sides in turn
    monkeypatch.setattr(
        kernel, "draw", lambda count, size, *key: seen.choice(count, size, replace=False)
    )
    theirs = kid.kid_features_to_metric(
        torch.tensor(A), torch.tensor(B), kid_subsets=20, rng_seed=2020, verbose=False
    )
    ours = kernel.kernel_distance(A, B, subsets=20)
    np.testing.assert_allclose(ours, list(theirs.values()), rtol=1e-9)


def test_kernel_distance_on_subsets_of_our_own(fidelity):
    kid = fidelity("metric_kid")
    theirs = kid.kid_features_to_metric(torch.tensor(A), torch.tensor(B), verbose=False)
    ours = kernel.kernel_distance(A, B)
    mean, std = theirs.values()
    assert abs(ours.mean - mean) < 4.0 * std / np.sqrt(100)  # the defaults: 100 subsets of 1,000
    assert abs(ours.std / std - 1.0) < 0.4


def test_precision_and_recall(fidelity):
    prc = fidelity("metric_prc")
    # In single precision as features are; theirs takes the generated set first.
    theirs = prc.prc_features_to_metric(
        torch.tensor(B).float(), torch.tensor(A).float(), verbose=False
    )
    ours = neighbours.support(A.astype(np.float32), B.astype(np.float32))
    np.testing.assert_allclose(
        [ours.precision, ours.recall], [theirs["precision"], theirs["recall"]], atol=1e-9
    )
    assert 0.05 < ours.precision < 0.95 and 0.05 < ours.recall < 0.95


@pytest.mark.parametrize("k", [3, 5])
def test_precision_recall_density_coverage(k):
    prdc = pytest.importorskip("prdc")
    theirs = prdc.compute_prdc(A[:900], B[:800], nearest_k=k)
    ours = neighbours.support(A[:900], B[:800], k_precision=k, k_density=k)
    for name, value in ours._asdict().items():
        np.testing.assert_allclose(value, theirs[name], rtol=1e-12, err_msg=name)


@pytest.mark.parametrize("scores", [SCORES, np.round(SCORES)], ids=["distinct", "ties"])
def test_scores_of_classes_and_pairs(scores):
    theirs = pytest.importorskip("sklearn.metrics")
    truth = LABELS == 2
    one = scores[:, 2]
    np.testing.assert_allclose(
        verification.auc(one, truth), theirs.roc_auc_score(truth, one), rtol=1e-12
    )
    curve = verification.roc(one, truth)
    false, true, threshold = theirs.roc_curve(truth, one, drop_intermediate=False)
    np.testing.assert_allclose(curve.false_accept, false, rtol=1e-12)
    np.testing.assert_allclose(curve.true_accept, true, rtol=1e-12)
    np.testing.assert_array_equal(curve.threshold, threshold)
    targets = np.eye(5)[LABELS]
    targets[:, 0] = targets[:, 1] = np.maximum(targets[:, 0], targets[:, 1])
    np.testing.assert_allclose(
        classification.mean_average_precision(scores, targets)[1],
        theirs.average_precision_score(targets, scores, average=None), rtol=1e-12,
    )  # fmt: skip
    table = classification.confusion_matrix(scores.argmax(axis=1), LABELS, 5)
    np.testing.assert_array_equal(table, theirs.confusion_matrix(LABELS, scores.argmax(axis=1)))
    np.testing.assert_allclose(
        classification.balanced_accuracy(table),
        theirs.balanced_accuracy_score(LABELS, scores.argmax(axis=1)), rtol=1e-12,
    )  # fmt: skip


def test_top_k():
    theirs = pytest.importorskip("sklearn.metrics")
    for k in (1, 2, 4):
        hits, count = classification.top_k(SCORES, LABELS, k)
        np.testing.assert_allclose(hits / count, theirs.top_k_accuracy_score(LABELS, SCORES, k=k))


@pytest.mark.parametrize("l2", [1e-3, 1e-1])
def test_linear_probe(l2):
    linear_model = pytest.importorskip("sklearn.linear_model")
    features = SCORES @ RNG.normal(size=(5, 30)) + RNG.normal(size=(400, 30))
    x = (features - features.mean(axis=0)) / features.std(axis=0)
    theirs = linear_model.LogisticRegression(
        C=1.0 / (l2 * len(x)), solver="newton-cg", tol=1e-10, max_iter=1000
    ).fit(x, LABELS)
    ours = probes.fit_linear_probe(features, LABELS, 5, l2=l2).logits(features)
    np.testing.assert_allclose(special.softmax(ours, axis=1), theirs.predict_proba(x), atol=2e-5)
