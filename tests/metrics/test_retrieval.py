"""Retrieval against sorted lists: groups of captions, ties, graded hits, slices."""

from __future__ import annotations

import numpy as np
import pytest

from vision_lang.errors import InputError
from vision_lang.metrics import arrays
from vision_lang.metrics.retrieval import retrieval, retrieval_of_similarity


def naive_ranks(similarity, right):
    """Sorts the candidates of each query; among equals the wrong ones come first."""
    ranks = []
    for s, r in zip(similarity, right, strict=True):
        order = sorted(range(len(s)), key=lambda j: (-s[j], r[j]))
        ranks.append(1 + next(place for place, j in enumerate(order) if r[j]))
    return np.array(ranks)


def naive(similarity, right, ks=(1, 5, 10)):
    result: dict[str, float] = {}
    for name, ranks in (
        ("i2t", naive_ranks(similarity, right)),
        ("t2i", naive_ranks(similarity.T, right.T)),
    ):
        result |= {f"{name}_recall{k}": np.mean([r <= k for r in ranks]) for k in ks}
        result[f"{name}_median_rank"] = np.median(ranks)
    return result


@pytest.fixture(params=[2**24, 40], ids=["whole", "sliced"], autouse=True)
def entries(request, monkeypatch):
    monkeypatch.setattr(arrays, "SLICE_ENTRIES", request.param)


@pytest.mark.parametrize("levels", [None, 4], ids=["distinct", "ties"])
def test_several_captions_per_image(levels):
    rng = np.random.default_rng(0)
    owner = rng.permutation(np.concatenate([np.arange(17), rng.integers(0, 17, size=40)]))
    right = np.arange(17)[:, None] == owner
    similarity = rng.normal(size=(17, 57)) + right
    if levels:
        similarity = np.round(similarity * levels / 4.0)
    got = retrieval_of_similarity(similarity, image_of_text=owner)
    assert got == pytest.approx(naive(similarity, right), abs=0)
    assert 0.0 < got["i2t_recall1"] < got["i2t_recall5"] < 1.0


def test_embeddings_give_inner_products():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 8)).astype(np.float32)
    y = x + rng.normal(size=(30, 8)).astype(np.float32)
    similarity = x.astype(np.float64) @ y.T.astype(np.float64)
    expected = naive(similarity, np.eye(30, dtype=bool))
    assert retrieval(x, y) == pytest.approx(expected, abs=0)
    assert retrieval_of_similarity(similarity) == pytest.approx(expected, abs=0)
    assert retrieval(x, y, ks=(2,)).keys() == {
        "i2t_recall2", "i2t_median_rank", "t2i_recall2", "t2i_median_rank"
    }  # fmt: skip


def test_a_collapsed_model_has_nothing_right():
    x = np.tile(np.random.default_rng(0).normal(size=(1, 513)), (40, 1))
    for got in (retrieval(x, x), retrieval_of_similarity(np.ones((40, 40)))):
        assert got["i2t_recall10"] == got["t2i_recall10"] == 0.0
        assert got["i2t_median_rank"] == got["t2i_median_rank"] == 40.0


def test_inner_products_that_differ_by_rounding_alone_are_equal():
    rng = np.random.default_rng(0)
    texts = rng.permuted(np.tile(rng.normal(size=(1, 513)), (40, 1)), axis=1)
    assert len(set(texts @ np.ones(513))) > 10  # sums of the same numbers in another order
    got = retrieval(np.ones((40, 513)), texts)
    assert got["i2t_median_rank"] == got["t2i_median_rank"] == 40.0


def test_a_hit_is_any_image_that_satisfies_the_caption():
    rng = np.random.default_rng(0)
    scenes, statements = rng.integers(0, 4, size=20), rng.integers(0, 4, size=15)
    table = scenes[:, None] == statements
    assert table.any(axis=0).all() and table.any(axis=1).all()
    similarity = np.round(rng.normal(size=(20, 15)) + table, 1)
    expected = naive(similarity, table)
    assert retrieval_of_similarity(similarity, satisfies=table) == pytest.approx(expected, abs=0)
    got = retrieval_of_similarity(
        similarity, satisfies=lambda i, t: scenes[i][:, None] == statements[t]
    )
    assert got == pytest.approx(expected, abs=0)


def test_refusals():
    x = np.random.default_rng(0).normal(size=(6, 3))
    with pytest.raises(InputError, match="6 images and 4 texts: say by image_of_text"):
        retrieval(x, x[:4])
    with pytest.raises(InputError, match="Image 5 has no right answer among the 5 candidates"):
        retrieval(x, x[:5], image_of_text=np.arange(5))
    with pytest.raises(InputError, match="Text 2 has no right answer"):
        retrieval(x, x, satisfies=np.tile([1, 1, 0, 1, 1, 1], (6, 1)).astype(bool))
    with pytest.raises(InputError, match="Label 6 of example 0"):
        retrieval(x, x, image_of_text=np.full(6, 6))
    with pytest.raises(InputError, match="not both"):
        retrieval(x, x, image_of_text=np.arange(6), satisfies=np.eye(6, dtype=bool))
    with pytest.raises(InputError, match=r"bool \[6, 6\] is wanted"):
        retrieval(x, x, satisfies=np.eye(6))
    with pytest.raises(InputError, match="3 dimensions, texts 2"):
        retrieval(x, x[:, :2])
    with pytest.raises(InputError, match="NaN"):
        retrieval_of_similarity(np.full((6, 6), np.nan))
