"""Captions, both ways: a scene becomes a sentence, a sentence becomes what it states.

A caption states the number of objects, the colour and shape of each, and, where there are two or
more, one relation between two of them. The sizes (of all objects) and the background are each
stated in half of the captions. What is not stated is not graded.
"""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np

from vision_lang.errors import InputError, suggestion
from vision_lang.shapes.scene import INVERSE, Object, Scene, relation

# The words for each thing, used equally often; the first is the thing's own name.
SHAPE_WORDS = {
    "circle": ("circle", "disc"),
    "square": ("square", "box"),
    "triangle": ("triangle", "wedge"),
    "cross": ("cross", "saltire"),
    "ring": ("ring", "hoop"),
    "plus": ("plus", "plus sign"),
}
COLOUR_WORDS = {
    "red": ("red", "crimson"),
    "green": ("green", "emerald"),
    "blue": ("blue", "azure"),
    "yellow": ("yellow", "golden"),
    "purple": ("purple", "violet"),
    "orange": ("orange", "amber"),
    "cyan": ("cyan", "turquoise"),
    "pink": ("pink", "rose"),
}
SIZE_WORDS = {"small": ("small", "little"), "large": ("large", "big")}
BACKGROUND_WORDS = {
    "white": ("white", "snowy"),
    "black": ("black", "dark"),
    "grey": ("grey", "gray"),
    "brown": ("brown", "chocolate"),
}
RELATION_WORDS = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
NUMBER_WORDS = {1: ("one", "a single"), 2: ("two", "a pair of"), 3: ("three", "a trio of")}
OBJECT_WORDS = ("object", "shape")
GROUND_WORDS = ("background", "backdrop")

# {n}: number phrase; {o}: object(s); A, B, C: noun phrases with article, {a} without;
# {r}: how A stands to B; {g}: the background phrase or nothing.
TEMPLATES = {
    1: (
        "{n} {a} {g}",
        "{n} {o} : {A} {g}",
        "there is {n} {a} {g}",
        "{g} {n} {a}",
    ),
    2: (
        "{n} {o} : {A} {r} {B} {g}",
        "there are {n} {o} , {A} {r} {B} {g}",
        "{g} {n} {o} : {A} {r} {B}",
        "{A} is {r} {B} , {n} {o} {g}",
    ),
    3: (
        "{n} {o} : {A} {r} {B} , and {C} {g}",
        "there are {n} {o} , {A} {r} {B} , and {C} {g}",
        "{g} {n} {o} : {C} , and {A} {r} {B}",
        "{A} is {r} {B} , and {C} , {n} {o} {g}",
    ),
}


@dataclass(frozen=True)
class Mention:
    """One object of a description; `size` is None where it is not stated."""

    shape: str
    colour: str
    size: str | None = None


@dataclass(frozen=True)
class Description:
    """What a sentence states.

    `relations` holds (i, name, j): objects[i] stands in relation `name` to objects[j].
    """

    count: int
    objects: tuple[Mention, ...]
    relations: tuple[tuple[int, str, int], ...] = ()
    background: str | None = None


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """A sentence about the scene, drawn by `rng`: template, words, what to state, which pair."""

    def pick(words: tuple[str, ...]) -> str:
        return words[rng.integers(len(words))]

    with_size, with_ground = rng.integers(2, size=2)

    def noun_phrase(o: Object) -> str:
        size = pick(SIZE_WORDS[o.size]) + " " if with_size else ""
        return f"{size}{pick(COLOUR_WORDS[o.colour])} {pick(SHAPE_WORDS[o.shape])}"

    count = len(scene.objects)
    order = [scene.objects[i] for i in rng.permutation(count)]
    phrases = [noun_phrase(o) for o in order]
    fields = dict(zip("ABC", map(_with_article, phrases), strict=False), a=phrases[0])
    if count > 1:
        a, b = order[:2]
        fields["r"] = pick(RELATION_WORDS[relation(a.x - b.x, a.y - b.y)])
    ground = f"{pick(BACKGROUND_WORDS[scene.background])} {pick(GROUND_WORDS)}"
    text = pick(TEMPLATES[count]).format(
        n=pick(NUMBER_WORDS[count]),
        o=pick(OBJECT_WORDS) + ("s" if count > 1 else ""),
        g=f"on a {ground}" if with_ground else "",
        **fields,
    )
    return re.sub(r" (?=[,:])", "", " ".join(text.split()))


def _with_article(phrase: str) -> str:
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def describe(scene: Scene) -> Description:
    """Everything that is true of a scene: all sizes, the background, each pair's main relation."""
    o = scene.objects
    return Description(
        len(o),
        tuple(Mention(a.shape, a.colour, a.size) for a in o),
        tuple(
            (i, relation(o[i].x - o[j].x, o[i].y - o[j].y), j)
            for i in range(len(o)) for j in range(i + 1, len(o))
        ),
        scene.background,
    )  # fmt: skip


def meaning(text: str | Description) -> tuple:
    """What two captions share if they say the same: kinds and relations, in one canonical form.

    Order of mention, "A left of B" against "B right of A", words, sizes and background drop out.
    """
    d = parse(text) if isinstance(text, str) else text
    kinds = tuple((m.colour, m.shape) for m in d.objects)
    stated = (
        min((kinds[i], name, kinds[j]), (kinds[j], INVERSE[name], kinds[i]))
        for i, name, j in d.relations
    )
    return tuple(sorted(kinds)), tuple(sorted(stated))


def agree(a: str, b: str) -> bool:
    """Whether two captions tell of the same objects, and contradict each other in nothing else.

    A size, a background or the relation of two objects counts where both state it.

    Raises:
      InputError: one of them is not of this grammar.
    """
    first, second = parse(a), parse(b)
    if meaning(first)[0] != meaning(second)[0]:
        return False
    left, right = _particulars(first), _particulars(second)
    return all(left[what] == right[what] for what in left.keys() & right.keys())


def _particulars(d: Description) -> dict[Any, str | None]:
    """What is stated beyond the objects: sizes by kind, relations by pair, the background."""
    kinds = [(m.colour, m.shape) for m in d.objects]
    stated: dict[Any, str | None] = {
        kind: m.size for kind, m in zip(kinds, d.objects, strict=True) if m.size
    }
    for i, name, j in d.relations:
        turned = kinds[i] > kinds[j]
        pair = (kinds[j], kinds[i]) if turned else (kinds[i], kinds[j])
        stated[pair] = INVERSE[name] if turned else name
    return stated | ({"background": d.background} if d.background else {})


def _vocabulary() -> dict[tuple[str, ...], tuple[str, Any]]:
    """Maps each phrase, as a tuple of words, to (kind, value)."""
    table: dict[str, tuple[str, Any]] = {}
    kinds = {
        "shape": SHAPE_WORDS, "colour": COLOUR_WORDS, "size": SIZE_WORDS,
        "ground_colour": BACKGROUND_WORDS, "relation": RELATION_WORDS,
    }  # fmt: skip
    for kind, words in kinds.items():
        table |= {phrase: (kind, name) for name, row in words.items() for phrase in row}
    table |= {
        "on the left of": ("relation", "left of"), "on the right of": ("relation", "right of"),
        "on top of": ("relation", "above"), "beneath": ("relation", "below"),
        "underneath": ("relation", "below"), "tiny": ("size", "small"), "and": ("and", None),
    }  # fmt: skip
    for n, names in {1: "one single 1", 2: "two pair 2", 3: "three trio 3"}.items():
        table |= {word: ("number", n) for word in names.split()}
    for word in OBJECT_WORDS:
        table |= {word: ("noun", None), word + "s": ("noun", None)}
    table |= {word: ("ground", None) for word in GROUND_WORDS}
    for word in "a an the is are there of on against in with picture image".split():
        table[word] = ("filler", None)
    return {tuple(phrase.split()): value for phrase, value in table.items()}


_PHRASES = _vocabulary()
_LONGEST = max(map(len, _PHRASES))


def _tokens(text: str) -> list[tuple[str, Any, str]]:
    """The sentence as (kind, value, words), the longest known phrase first, fillers dropped.

    Raises:
      InputError: a word that the grammar does not know.
    """
    words = re.findall(r"[\w'-]+", text.lower())
    tokens = []
    at = 0
    while at < len(words):
        for length in range(min(_LONGEST, len(words) - at), 0, -1):
            phrase = tuple(words[at : at + length])
            if phrase in _PHRASES:
                kind, value = _PHRASES[phrase]
                if kind != "filler":
                    tokens.append((kind, value, " ".join(phrase)))
                at += length
                break
        else:
            known = sorted({word for phrase in _PHRASES for word in phrase})
            raise InputError(f"Unknown word '{words[at]}'.{suggestion(words[at], known)}")
    return tokens


def parse(text: str) -> Description:
    """What a sentence states: a caption, or a prompt such as "a red circle above a blue square".

    Raises:
      InputError: an unknown word, or a sentence that is not of this grammar; the message says
        which word and why.
    """
    tokens = deque(_tokens(text))
    objects: list[Mention] = []
    relations: list[tuple[int, str, int]] = []
    pending: tuple[int, str] | None = None  # a relation that waits for its second object
    stated = background = None
    after_and, last = False, -1  # last: index of the object mentioned last
    while tokens:
        kind, value, words = tokens.popleft()
        following = tokens[0][0] if tokens else None
        if kind == "number":
            # "one red circle and one blue square": here "one" is but an article.
            if value != 1 or following == "noun":
                stated = value
        elif kind in ("size", "colour", "shape"):
            tokens.appendleft((kind, value, words))
            last = _place_of(_mention(tokens), objects)
            if pending is not None:
                if pending[0] == last:
                    raise InputError(f"'{text}' relates an object to itself.")
                relations.append((*pending, last))
                pending = None
        elif kind == "relation":
            if not objects or pending is not None:
                raise InputError(f"'{words}' needs an object before it, in '{text}'.")
            # "A is above B and left of C" speaks of A twice.
            subject = relations[-1][0] if after_and and relations else last
            pending = subject, value
        elif kind == "ground_colour":
            if following not in ("ground", None):
                raise InputError(f"'{words}' is a colour for the background only, in '{text}'.")
            background = value
        elif kind == "ground" and background is None:
            raise InputError(f"'{words}' needs one of {', '.join(BACKGROUND_WORDS)} before it.")
        after_and = kind == "and"
    if pending is not None:
        raise InputError(f"'{pending[1]}' needs an object after it, in '{text}'.")
    count = len(objects)
    if not 1 <= count <= 3 or stated not in (None, count):
        raise InputError(f"'{text}' names {count} objects; name 1 to 3, as many as it states.")
    return Description(count, tuple(objects), tuple(relations), background)


def _place_of(mention: Mention, objects: list[Mention]) -> int:
    """Index of the mentioned object, which joins the list if it is new.

    Objects of a scene differ in colour or shape, so a second "red circle" is the first one again.
    """
    for i, known in enumerate(objects):
        if (known.shape, known.colour) == (mention.shape, mention.colour):
            if None not in (known.size, mention.size) and known.size != mention.size:
                raise InputError(
                    f"Two objects are a {mention.colour} {mention.shape}; "
                    "the objects of a scene differ in colour or shape."
                )
            objects[i] = Mention(known.shape, known.colour, known.size or mention.size)
            return i
    objects.append(mention)
    return len(objects) - 1


def _mention(tokens: deque) -> Mention:
    """Takes "[size] colour shape" from the front of the tokens."""
    found: dict[str, str] = {}
    while tokens and tokens[0][0] in ("size", "colour") and tokens[0][0] not in found:
        kind, value, _ = tokens.popleft()
        found[kind] = value
    if not tokens or tokens[0][0] != "shape" or "colour" not in found:
        near = f" near '{tokens[0][2]}'" if tokens else ""
        raise InputError(f"An object needs a colour and a shape, as in 'a red circle'{near}.")
    return Mention(tokens.popleft()[1], found["colour"], found.get("size"))
