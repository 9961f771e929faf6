"""Caption metrics against pycocoevalcap, live; its tokenizer needs Java.

The captions of COCO are not in this repository. COCO_CAPTIONS names a file with one caption per
line, COCO_EXAMPLE a folder with pycocoevalcap's published example, captions_val2014.json and
captions_val2014_fakecap_results.json; without them the tests that read them are skipped.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.metrics.test_caption import random_corpus
from vision_lang.metrics import caption

pytest.importorskip("pycocoevalcap")
pytestmark = pytest.mark.parity
java = pytest.mark.skipif(shutil.which("java") is None, reason="no Java")

FIXTURES = Path(__file__).parents[1] / "fixtures"
EXAMPLE = {
    "Bleu_1": 0.579, "Bleu_2": 0.404, "Bleu_3": 0.279, "Bleu_4": 0.191,
    "ROUGE_L": 0.396, "CIDEr": 0.600,
}  # fmt: skip


def named(variable: str) -> Path:
    if variable not in os.environ:
        pytest.skip(f"{variable} is not set")
    return Path(os.environ[variable])


def same_tokens(captions: list[str]) -> list[bool]:
    """Whether both tokenizers agree on each caption, read by itself."""
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    # The Java program looks into the next line, so that one stands there that changes nothing.
    lines = {i: [{"caption": text}, {"caption": "q"}] for i, text in enumerate(captions)}
    theirs = [tokens[0] for tokens in PTBTokenizer().tokenize(lines).values()]
    ours = [" ".join(caption.ptb.tokenize(text)) for text in captions]
    return [a == b for a, b in zip(ours, theirs, strict=True)]


@java
def test_tokens_of_cases_put_together_at_random():
    text = (FIXTURES / "captions.txt").read_text(encoding="utf-8")
    words, rng = text.split(), random.Random(0)
    captions = [" ".join(rng.choices(words, k=8)) for _ in range(5000)]
    assert np.mean(same_tokens(captions)) > 0.99
    assert all(same_tokens(text.split("\n")))


@java
def test_tokens_of_coco():
    captions = named("COCO_CAPTIONS").read_text(encoding="utf-8").splitlines()
    same = same_tokens(captions)
    print(f"{sum(same)} of {len(same)} captions have the same tokens")
    assert np.mean(same) >= 0.9999


@pytest.mark.parametrize("seed", range(5))
def test_scores_of_random_sentences(seed):
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    candidates, references = random_corpus(seed, images=100, vocabulary=8, longest=12)
    theirs = (
        {i: [" ".join(r) for r in own] for i, own in enumerate(references)},
        {i: [" ".join(c)] for i, c in enumerate(candidates)},
    )
    corpus, images = Bleu(4).compute_score(*theirs, verbose=0)
    got = caption.bleu.score(candidates, references)
    np.testing.assert_allclose(got.corpus, corpus, atol=1e-12)
    np.testing.assert_allclose(got.images, np.transpose(images), atol=1e-12)
    for ours, scorer in [(caption.rouge, Rouge()), (caption.cider, Cider())]:
        corpus, images = scorer.compute_score(*theirs)
        got = ours.score(candidates, references)
        np.testing.assert_allclose(got.corpus, corpus, atol=1e-12)
        np.testing.assert_allclose(got.images, images, atol=1e-12)


def test_the_published_example():
    folder = named("COCO_EXAMPLE")
    results = json.loads((folder / "captions_val2014_fakecap_results.json").read_text())
    # The published numbers are those of the images in the results, 1,000 of 40,504.
    candidates = {row["image_id"]: row["caption"] for row in results}
    references: dict[int, list[str]] = {image: [] for image in candidates}
    for row in json.loads((folder / "captions_val2014.json").read_text())["annotations"]:
        if row["image_id"] in references:
            references[row["image_id"]].append(row["caption"])
    record = caption.score(list(candidates.values()), list(references.values()))
    assert record["images"] == 1000
    for name, value in EXAMPLE.items():
        assert record[name] == pytest.approx(value, abs=1e-3), name
