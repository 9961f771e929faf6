"""BLEU, ROUGE-L and CIDEr-D: worked examples, brute-force twins, the usual code's own numbers."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest

from vision_lang.errors import InputError
from vision_lang.metrics import caption
from vision_lang.metrics.caption import bleu, cider, rouge
from vision_lang.metrics.caption.rouge import common_length

FIXTURE = Path(__file__).parents[1] / "fixtures" / "caption_references.json"
METRICS = {"bleu": bleu.score, "rouge": rouge.score, "cider": cider.score}


def split(*captions):
    return [c.split() for c in captions]


def random_corpus(seed, images=20, vocabulary=5, longest=7):
    """Short sentences of few words, so that every n-gram and subsequence comes up often."""
    rng = np.random.default_rng(seed)
    words = np.asarray(list("abcdefgh"[:vocabulary]))

    def sentence(least):
        return list(rng.choice(words, rng.integers(least, longest + 1)))

    candidates = [sentence(0) for _ in range(images)]
    references = [[sentence(1) for _ in range(rng.integers(1, 5))] for _ in range(images)]
    return candidates, references


@pytest.mark.parametrize("name", METRICS)
def test_numbers_of_pycocoevalcap(name):
    stored = json.loads(FIXTURE.read_text(encoding="utf-8"))
    # Split at spaces only: one of the words holds a no-break space, as tokens may.
    candidates = [[w for w in c.split(" ") if w] for c in stored["candidates"]]
    references = [[[w for w in c.split(" ") if w] for c in own] for own in stored["references"]]
    got = METRICS[name](candidates, references)
    np.testing.assert_allclose(got.corpus, stored[name]["corpus"], atol=1e-9)
    np.testing.assert_allclose(got.images, stored[name]["images"], atol=1e-9)
    assert np.ptp(got.images, axis=0).min() > 0.3  # the fixture tells captions apart


def test_bleu_of_the_papers_example():
    # Papineni et al. 2002, example 2: "the" counts twice at most, in either reference.
    candidate = split("the the the the the the the")
    references = [split("the cat is on the mat", "there is a cat on the mat")]
    got = bleu.score(candidate, references)
    np.testing.assert_allclose(got.corpus[0], 2 / 7, atol=1e-9)
    assert got.corpus[1] < 1e-6
    # The brevity penalty, against the reference that is closest in length, of two the shorter.
    short = bleu.score(split("a b c d"), [split("a b c d e f", "a b", "a b c d e f g h")], order=1)
    np.testing.assert_allclose(short.corpus, [1.0], atol=1e-9)  # length 2 is as far as 6
    short = bleu.score(split("a b c d"), [split("a b c d e f", "z")], order=1)
    np.testing.assert_allclose(short.corpus, [math.exp(1 - 6 / 4)], atol=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_bleu_is_its_definition(seed):
    candidates, references = random_corpus(seed, images=60, vocabulary=3)

    def grams(words, n):
        return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]

    product = 1.0
    lengths = [
        (len(c), min((abs(len(r) - len(c)), len(r)) for r in own)[1])
        for c, own in zip(candidates, references, strict=True)
    ]
    c, r = np.sum(lengths, axis=0)
    got = bleu.score(candidates, references).corpus
    for n in range(1, 5):
        right = total = 0
        for candidate, own in zip(candidates, references, strict=True):
            for gram in set(grams(candidate, n)):
                most = max(grams(reference, n).count(gram) for reference in own)
                right += min(grams(candidate, n).count(gram), most)
            total += len(grams(candidate, n))
        product *= right / total
        expected = product ** (1 / n) * math.exp(min(0, 1 - r / c))
        np.testing.assert_allclose(got[n - 1], expected, rtol=1e-6)


def test_rouge_of_the_papers_example():
    # Lin 2004, section 3.1, S1-S3; where precision and recall are equal, beta plays no part.
    reference = [split("police killed the gunman")]
    for candidate, expected in [
        ("police kill the gunman", 3 / 4),
        ("the gunman kill police", 1 / 2),
    ]:
        assert rouge.score(split(candidate), reference).corpus == pytest.approx(expected)
    # Precision 1 of the longer reference, recall 1/2 of the shorter: each the best of all.
    got = rouge.score(split("a b"), [split("a b x y z w", "a c q p")]).corpus
    p, r = 1.0, 2 / 6
    assert got == pytest.approx((1 + 1.2**2) * p * r / (r + 1.2**2 * p))


@pytest.mark.parametrize("seed", range(3))
def test_common_length_is_that_of_the_longest_of_all_subsequences(seed):
    candidates, references = random_corpus(seed, images=30, vocabulary=4)

    def subsequences(words):
        return {
            tuple(itertools.compress(words, chosen))
            for chosen in itertools.product([False, True], repeat=len(words))
        }

    for a, own in zip(candidates, references, strict=True):
        for b in own:
            expected = max(map(len, subsequences(a) & subsequences(b)))
            assert common_length(a, b) == common_length(b, a) == expected


def test_cider_by_hand():
    # Two images that share no n-gram: each counts log(2), vectors are proportional to counts.
    references = [split("a b c d"), split("w x y z")]
    got = cider.score(split("a b c d", "w x y q"), references).images
    right = [3 / 4, 2 / 3, 1 / 2, 0]  # n-grams in common of n = 1..4, of those of either caption
    np.testing.assert_allclose(got, [10.0, 10 * np.mean(right)], rtol=1e-12)
    # "the" is in both images and counts nothing; a word said twice is clipped to once; one word
    # more is penalised by exp(-1 / (2 * 6^2)).
    references = [split("the a"), split("the b")]
    got = cider.score(split("the a a", "the"), references).images
    unigram = (1 * 1) / (2 * 1)  # min(2, 1) * 1 over the norms of (2) and (1)
    bigram = 1 / math.sqrt(2)  # "the a" of "the a", "a a"
    expected = 10 * (unigram + bigram) / 4 * math.exp(-1 / 72)
    np.testing.assert_allclose(got, [expected, 0.0], rtol=1e-12)


def test_cider_of_a_single_image_is_zero():
    assert cider.score(split("a red circle on grass"), [split("a red circle on grass")]).corpus == 0
    assert "0 if there is but one image" in str(cider.score.__doc__)


def test_a_candidate_that_is_a_reference_is_perfect():
    _, references = random_corpus(5, longest=9)
    references = [[[*"qrst", *words] for words in own] for own in references]
    candidates = [own[-1] for own in references]
    np.testing.assert_allclose(bleu.score(candidates, references).images, 1.0, atol=1e-8)
    np.testing.assert_allclose(rouge.score(candidates, references).images, 1.0)


@pytest.mark.parametrize("name", METRICS)
def test_the_order_of_images_and_of_references_does_not_matter(name):
    candidates, references = random_corpus(7)
    there = METRICS[name](candidates, references)
    back = METRICS[name](candidates[::-1], [own[::-1] for own in references[::-1]])
    np.testing.assert_allclose(back.corpus, there.corpus, rtol=1e-12)
    np.testing.assert_allclose(back.images[::-1], there.images, rtol=1e-12, atol=1e-15)


def test_the_record():
    got = caption.score(
        ["A dog runs.", "two cats, on a mat"], [["a DOG runs!"], ["Two cats on a mat"]]
    )
    assert list(got) == [
        "Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L", "CIDEr", "images", "tokenizer",
    ]  # fmt: skip
    assert got["images"] == 2 and got["tokenizer"] == caption.ptb.NAME
    assert got["ROUGE_L"] == pytest.approx(1) and got["Bleu_3"] == pytest.approx(1)
    assert got["CIDEr"] == pytest.approx(8.75)  # of the three words there are no 4-grams


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize(
    "candidates, references, message",
    [
        ([], [], "no captions"),
        ([["a"]], [[["a"]], [["b"]]], "1 candidates cannot describe 2 images"),
        ([["a"], ["b"]], [[["a"]], []], "Image number 1 has no reference"),
        (["a b"], [[["a"]]], "not tokenised"),
        ([["a"]], [["a b"]], "not tokenised"),
    ],
)
def test_refused(name, candidates, references, message):
    with pytest.raises(InputError, match=message):
        METRICS[name](candidates, references)
