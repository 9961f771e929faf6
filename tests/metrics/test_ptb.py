"""The tokenizer: what it does to the cases that captions are full of, and Stanford's own output."""

import json
import time
from pathlib import Path

import pytest

from vision_lang.metrics.caption import ptb

FIXTURE = Path(__file__).parents[1] / "fixtures" / "caption_references.json"


@pytest.mark.parametrize(
    "caption, tokens",
    [
        ("A man, who can't swim, isn't here.", "a man who ca n't swim is n't here"),
        ("It's the dogs' owner's hat", "it 's the dogs owner 's hat"),
        ("He cannot and I'm gonna", "he can not and i 'm gon na"),
        ("Mr. Smith left the U.S. at 5 a.m.", "mr. smith left the u.s. at 5 a.m."),
        ("1,000 well-known t-shirts, 3.5 miles", "1,000 well-known t-shirts 3.5 miles"),
        ('“Stop” - "go" (now)... wow!!!', "stop go -lrb- now -rrb- wow !!!"),
        ("him/her: AT&T & $5 at 12:30pm", "him/her at&t & $ 5 at 12:30 pm"),
        ("see www.foo.com, or pizza.from it—now", "see www.foo.com or pizza.from it now"),
        ("", ""),
        (" . ", ""),
    ],
)
def test_captions(caption, tokens):
    assert " ".join(ptb.tokenize(caption)) == tokens


def test_stanfords_own_output():
    cases = json.loads(FIXTURE.read_text(encoding="utf-8"))["tokens"]
    assert len(cases) > 35
    for caption, tokens in cases:
        assert " ".join(ptb.tokenize(caption)) == tokens


def test_one_space_or_many_is_the_same():
    for caption, _ in json.loads(FIXTURE.read_text(encoding="utf-8"))["tokens"]:
        spaced = "\n" + caption.replace(" ", "  ") + "\t"
        if ". . ." in caption or "/" in caption or "555" in caption:
            continue  # tokens that hold spaces
        assert ptb.tokenize(spaced) == ptb.tokenize(caption)


@pytest.mark.parametrize("piece", ["a-", "a.", "a'", "é", "न", "a_", "1,", "<a ", "@a", "ab!", "("])
def test_long_nonsense_takes_no_exponential_time(piece):
    start = time.perf_counter()
    ptb.tokenize(piece * 400 + "\u2028!")
    assert time.perf_counter() - start < 2.0
