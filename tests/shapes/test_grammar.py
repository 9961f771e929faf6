"""Known sentences, both ways."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest

from vision_lang.errors import InputError
from vision_lang.shapes.grammar import (
    Description,
    Mention,
    agree,
    caption,
    describe,
    meaning,
    parse,
)
from vision_lang.shapes.scene import Object, Scene

RED_CIRCLE, BLUE_SQUARE = Mention("circle", "red"), Mention("square", "blue")

KNOWN = {
    "a red circle above a blue square": Description(
        2, (RED_CIRCLE, BLUE_SQUARE), ((0, "above", 1),)
    ),
    "a small red circle": Description(1, (Mention("circle", "red", "small"),)),
    "an orange disc on a dark backdrop": Description(
        1, (Mention("circle", "orange"),), background="black"
    ),
    "a trio of shapes: a big rose hoop, and a little turquoise wedge to the right of "
    "an amber plus sign on a snowy background": Description(
        3,
        (
            Mention("ring", "pink", "large"),
            Mention("triangle", "cyan", "small"),
            Mention("plus", "orange"),
        ),
        ((1, "right of", 2),),
        "white",
    ),
    "There are two objects, a violet saltire under a golden box on a gray background.": Description(
        2, (Mention("cross", "purple"), Mention("square", "yellow")), ((0, "below", 1),), "grey"
    ),
    "On a chocolate backdrop a single emerald disc": Description(
        1, (Mention("circle", "green"),), background="brown"
    ),
    "one red circle and one blue square": Description(2, (RED_CIRCLE, BLUE_SQUARE)),
    "a crimson disc is over an azure box and left of a green ring": Description(
        3, (RED_CIRCLE, BLUE_SQUARE, Mention("ring", "green")),
        ((0, "above", 1), (0, "left of", 2)),
    ),
    "a green ring left of a blue square, and the blue square below a red circle": Description(
        3, (Mention("ring", "green"), BLUE_SQUARE, RED_CIRCLE),
        ((0, "left of", 1), (1, "below", 2)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("text", KNOWN)
def test_known_sentences(text):
    assert parse(text) == KNOWN[text]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a rad circle", "Unknown word 'rad'. Did you mean 'red'?"),
        ("a red zebra", "Unknown word 'zebra'"),
        ("a red", "needs a colour and a shape"),
        ("a circle", "needs a colour and a shape"),
        ("a white circle", "'white' is a colour for the background only"),
        ("a circle on a red background", "needs a colour and a shape"),
        ("three objects: a red circle", "names 1 objects"),
        ("above a red circle", "needs an object before it"),
        ("a red circle above", "needs an object after it"),
        ("a red circle above a red circle", "relates an object to itself"),
        ("a small red circle and a large red circle", "differ in colour or shape"),
        ("", "names 0 objects"),
    ],
)
def test_what_is_no_sentence_is_refused_with_a_reason(text, says):
    with pytest.raises(InputError, match=re.escape(says)):
        parse(text)


ONE = Scene((Object("ring", "orange", "small", 0.3, 0.4),), "brown")
TWO = Scene(
    (Object("circle", "red", "small", 0.2, 0.4), Object("square", "blue", "large", 0.7, 0.5)),
    "white",
)
THREE = Scene(
    (
        Object("cross", "green", "large", 0.3, 0.25),
        Object("plus", "purple", "large", 0.32, 0.75),
        Object("triangle", "cyan", "small", 0.8, 0.5),
    ),
    "black",
)

CIRCLE = "a (small |little )?(red|crimson) (circle|disc)"
SQUARE = "an? (large |big )?(blue|azure) (square|box)"
LEFT = "(is )?(to the )?left of"
RIGHT = "(is )?(to the )?right of"


def _captions(scene: Scene, count: int = 600) -> list[str]:
    return [caption(scene, np.random.default_rng(i)) for i in range(count)]


def test_captions_of_two_objects_by_a_pattern_written_by_hand():
    pattern = re.compile(
        r"((on a (white|snowy) (background|backdrop) )?"
        r"(there are )?(two|a pair of) (objects|shapes)[,:] )?"
        f"({CIRCLE} {LEFT} {SQUARE}|{SQUARE} {RIGHT} {CIRCLE})"
        r"(, (two|a pair of) (objects|shapes))?"
        r"( on a (white|snowy) (background|backdrop))?"
    )
    for text in _captions(TWO):
        assert pattern.fullmatch(text), text
        assert len(re.findall("two|pair", text)) == 1, text  # the number, once
        assert len(re.findall("background|backdrop", text)) <= 1, text
        assert len(re.findall("small|little|large|big", text)) in (0, 2), text  # all or none


@pytest.mark.parametrize("scene", [ONE, TWO, THREE])
def test_captions_state_what_they_must_and_only_what_is_true(scene):
    n = len(scene.objects)
    texts = _captions(scene)
    stated = [parse(text) for text in texts]
    for text, d in zip(texts, stated, strict=True):
        assert d.count == n, text
        assert len(re.findall(r"\b(one|single|two|pair|three|trio)\b", text)) == 1, text
        at = {(o.colour, o.shape): o for o in scene.objects}
        named = [at.pop((m.colour, m.shape)) for m in d.objects]
        assert not at, text
        assert {m.size for m in d.objects} == {None} or [m.size for m in d.objects] == [
            o.size for o in named
        ], text
        assert d.background in (None, scene.background), text
        assert len(d.relations) == (n > 1), text
        for i, name, j in d.relations:
            a, b = named[i], named[j]
            true = {
                "left of": a.x < b.x - 0.2, "right of": a.x > b.x + 0.2,
                "above": a.y < b.y - 0.2, "below": a.y > b.y + 0.2,
            }  # fmt: skip
            assert true[name], text
    # Size and background in half of them, independently; 600 draws: 5 sigma is 0.1.
    sized = np.array([d.objects[0].size is not None for d in stated])
    grounded = np.array([d.background is not None for d in stated])
    assert abs(sized.mean() - 0.5) < 0.1 and abs(grounded.mean() - 0.5) < 0.1
    assert abs((sized & grounded).mean() - 0.25) < 0.1
    # Long captions cost training time.
    assert max(len(text.split()) for text in texts) <= 30


@pytest.mark.parametrize("scene", [ONE, TWO, THREE])
def test_there_are_four_templates_and_two_words_for_everything(scene):
    words = Counter(word for text in _captions(scene) for word in re.findall(r"\w+", text))
    for pair in [
        ("background", "backdrop"), ("one", "single"), ("two", "pair"), ("three", "trio"),
        ("circle", "disc"), ("square", "box"), ("triangle", "wedge"), ("plus", "sign"),
        ("cross", "saltire"), ("ring", "hoop"), ("red", "crimson"), ("green", "emerald"),
        ("blue", "azure"), ("purple", "violet"), ("orange", "amber"), ("cyan", "turquoise"),
        ("small", "little"), ("large", "big"), ("white", "snowy"), ("black", "dark"),
        ("brown", "chocolate"), ("above", "over"), ("below", "under"), ("object", "shape"),
        ("objects", "shapes"),
    ]:  # fmt: skip
        assert (words[pair[0]] > 0) == (words[pair[1]] > 0), pair
    # With the optional parts and the words taken away, what differs is the template.
    bare = set()
    for text in _captions(scene):
        text = re.sub(r" ?on an? \w+ (background|backdrop)", " G ", text)
        text = re.sub(r"an? (\w+ )?\w+ (circle|disc|square|box|triangle|wedge|plus sign|plus|"
                      r"cross|saltire|ring|hoop)", "O", text)  # fmt: skip
        text = re.sub(r"a (single|pair of|trio of)|one|two|three", "N", text)
        if " G " in text:
            bare.add(" ".join(text.split()))
    assert len(bare) >= 4


def test_describe_tells_all():
    everything = describe(TWO)
    assert everything == Description(
        2,
        (Mention("circle", "red", "small"), Mention("square", "blue", "large")),
        ((0, "left of", 1),),
        "white",
    )
    assert set(describe(THREE).relations) == {
        (0, "above", 1), (0, "left of", 2), (1, "left of", 2)
    }  # fmt: skip


def test_meaning_is_what_paraphrases_share():
    same = [
        "two objects: a small red circle left of a blue square",
        "an azure box to the right of a crimson disc on a white background",
        "a big blue square is right of a red disc, a pair of shapes",
    ]
    assert len({meaning(text) for text in same}) == 1
    other = [
        "a red circle right of a blue square",
        "a red circle above a blue square",
        "a red square left of a blue circle",
        "a red circle and a blue square",
        "a red circle left of a blue square, and a green ring",
    ]
    assert len({meaning(text) for text in same + other}) == 1 + len(other)


@pytest.mark.parametrize(
    ("a", "b", "wanted"),
    [
        ("a red circle above a blue square", "a blue box below a crimson disc", True),
        ("a red circle above a blue square", "a blue square above a red circle", False),
        ("a red circle above a blue square", "a red circle left of a blue square", False),
        ("a red circle above a blue square", "two objects: a red circle and a blue square", True),
        ("a red circle above a blue square", "a red circle above a blue ring", False),
        ("a red circle above a blue square", "a red circle", False),
        ("a small red circle", "a red circle on a white background", True),
        ("a small red circle", "a large red circle", False),
        ("a red circle on a black background", "a red circle on a white background", False),
    ],
)
def test_captions_agree_where_both_state_something(a, b, wanted):
    assert agree(a, b) is agree(b, a) is wanted


def test_all_captions_of_a_scene_of_one_or_two_agree():
    rng = np.random.default_rng(0)
    circle, square = (
        Object("circle", "red", "small", 0.2, 0.5),
        Object("square", "blue", "large", 0.7, 0.4),
    )
    for objects in ((circle,), (circle, square)):
        texts = [caption(Scene(objects, "grey"), rng) for _ in range(12)]
        assert len(set(texts)) > 6 and all(agree(texts[0], text) for text in texts)
