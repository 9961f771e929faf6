"""Evaluation: captions against pycocoevalcap, with its tokenizer in Java, and the Frechet distance
against torch-fidelity's, of the same captions and features."""

from __future__ import annotations

import numpy as np

from experiments.speed import peers
from experiments.speed.case import OURS, Case, Contest, Options

WORDS = 2000
REFERENCES = 5
SCORES = ("Bleu_4", "ROUGE_L", "CIDEr")


def captions(options: Options) -> tuple[list[str], list[list[str]]]:
    """A candidate and five references for each picture: words as frequent as Zipf has them, those
    of a picture from a handful, so that some agree."""
    rng = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = ["".join(rng.choice(letters, size=rng.integers(2, 9))) for _ in range(WORDS)]
    shares = 1.0 / np.arange(1, WORDS + 1)
    found = []
    for _ in range(options.size(cpu=5000, cuda=5000, small=50)):
        own = rng.choice(WORDS, size=14, p=shares / shares.sum())
        texts = [
            " ".join(words[w] for w in rng.choice(own, size=rng.integers(8, 13)))
            for _ in range(1 + REFERENCES)
        ]
        found.append(texts)
    return [texts[0] for texts in found], [texts[1:] for texts in found]


def _captions_ours(options: Options) -> Contest:
    from vision_lang.metrics import caption

    candidates, references = captions(options)
    same: dict[str, float] = {}

    def unit() -> None:
        found = caption.score(candidates, references)
        same.update((name, found[name]) for name in SCORES)

    unit()
    return Contest(unit, same)


def _captions_peer(options: Options) -> Contest:
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    candidates, references = captions(options)
    results = {i: [{"caption": text}] for i, text in enumerate(candidates)}
    truth = {i: [{"caption": text} for text in own] for i, own in enumerate(references)}
    tokenizer, same = PTBTokenizer(), {}

    def unit() -> None:
        ours, theirs = tokenizer.tokenize(results), tokenizer.tokenize(truth)
        same["Bleu_4"] = float(Bleu(4).compute_score(theirs, ours, verbose=0)[0][3])
        same["ROUGE_L"] = float(Rouge().compute_score(theirs, ours)[0])
        same["CIDEr"] = float(Cider().compute_score(theirs, ours)[0])

    unit()
    return Contest(unit, same)


def features(options: Options) -> tuple[np.ndarray, np.ndarray]:
    """Two sets of features as Inception's are in number and width, float32 [N, D]."""
    count, width = options.size(10_000, 10_000, 300), options.size(2048, 2048, 64)
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(width, width)) * np.logspace(0, -2, width) / width**0.5
    draw = lambda: (rng.normal(size=(count, width)) @ mix).astype(np.float32)  # noqa: E731
    return draw(), draw() + np.float32(0.1)


def _frechet_ours(options: Options) -> Contest:
    from vision_lang.metrics.frechet import frechet_distance

    a, b = features(options)
    same = {"distance": frechet_distance(a, b)}

    def unit() -> None:
        frechet_distance(a, b)

    return Contest(unit, same)


def _frechet_peer(options: Options) -> Contest:
    torch = peers.set_up(options)
    from torch_fidelity import metric_fid as fid

    sets = [torch.tensor(x) for x in features(options)]

    def distance() -> float:
        a, b = (fid.fid_features_to_statistics(x) for x in sets)
        found = fid.fid_statistics_to_metric(a, b, verbose=False)
        return float(found["frechet_inception_distance"])

    same = {"distance": distance()}

    def unit() -> None:
        distance()

    return Contest(unit, same)


CASES = {
    "captions": Case(
        "5,000 captions scored by five references: tokens, BLEU, ROUGE-L, CIDEr-D",
        {OURS: _captions_ours, "pycocoevalcap": _captions_peer},
    ),
    "frechet": Case(
        "Frechet distance of 10,000 and 10,000 features of width 2,048",
        {OURS: _frechet_ours, "torch_fidelity": _frechet_peer},
    ),
}
