"""Which scenes belong to which split, and the scene number `index` of a split.

What keeps the splits apart is the meaning: the (colour, shape) kinds in a scene and how they
stand to each other, without sizes, positions and background.
  * Two objects: the key is the two kinds with the relation along their dominant axis (the one
    that the caption states). Three objects: the key is the three kinds alone, whatever relation a
    caption picks, which is stricter. A stable hash of the key gives 80 % of the keys to train and
    10 % each to validation and test, so no test scene of two or more objects has the meaning of a
    train scene. Single objects are too few to be split: all kinds occur in all three, and of the
    3,024 different pictures of them most of those in test occur in train as well.
  * test_unseen: HELD_OUT, 6 of the 48 kinds (12.5 %; each shape once, six of the eight colours),
    never occur in the other splits, and neither do "pairs of pairs": 5 % of the pairs of the other
    42 kinds, chosen by hash, never stand together in a scene of two or three. Every test_unseen
    scene holds a held-out kind (all scenes of one object, half of the others) or such a pair of
    kinds (the other half). Every shape and every colour occurs in train.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools

import numpy as np

from vision_lang.errors import choose
from vision_lang.shapes.grammar import Description
from vision_lang.shapes.scene import (
    BACKGROUNDS,
    COLOURS,
    DOMINANCE,
    DRAWN_MARGIN,
    GAP,
    GRID,
    REACH,
    RELATIONS,
    RIM,
    SHAPES,
    SIZES,
    Object,
    Scene,
    relation,
)

Kind = tuple[str, str]  # (colour, shape)

SPLITS = {"train": 0, "validation": 1, "test": 2, "test_unseen": 3}
TEST_SHARE = VALIDATION_SHARE = 0.1
APART_SHARE = 0.05  # of the pairs of seen kinds, never together outside test_unseen

HELD_OUT: tuple[Kind, ...] = (
    ("purple", "circle"),
    ("cyan", "square"),
    ("green", "triangle"),
    ("yellow", "cross"),
    ("orange", "ring"),
    ("pink", "plus"),
)
KINDS: tuple[Kind, ...] = tuple(itertools.product(COLOURS, SHAPES))
SEEN: tuple[Kind, ...] = tuple(kind for kind in KINDS if kind not in HELD_OUT)


def _uniform(text: str) -> float:
    """A number in [0, 1) that depends on the text alone, on every machine and version."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def apart(a: Kind, b: Kind) -> bool:
    """Whether two seen kinds are a held-out pair of pairs."""
    first, second = sorted((a, b))
    return _uniform(f"apart: {first}, {second}") < APART_SHARE


def key(kinds: tuple[Kind, ...], stands: str) -> str:
    """The canonical text that is hashed; `stands` relates kinds[0] to kinds[1] if there are two."""
    ordered = ", ".join(f"{colour} {shape}" for colour, shape in sorted(kinds))
    if len(kinds) != 2:
        return ordered
    # Sorting may swap the two: "A left of B" and "B right of A" must give one key.
    if tuple(sorted(kinds)) != kinds:
        stands = RELATIONS[RELATIONS.index(stands) ^ 1]
    return f"{ordered}: {stands}"


def split_of(kinds: tuple[Kind, ...], stands: str = "") -> str:
    """The split that a scene of two or three objects belongs to.

    Args:
      kinds: the objects' (colour, shape).
      stands: how kinds[0] stands to kinds[1] along the dominant axis; used for two objects only.
    """
    if any(kind in HELD_OUT for kind in kinds):
        return "test_unseen"
    if any(apart(a, b) for a, b in itertools.combinations(kinds, 2)):
        return "test_unseen"
    u = _uniform(f"split: {key(kinds, stands)}")
    if u < TEST_SHARE:
        return "test"
    return "validation" if u < TEST_SHARE + VALIDATION_SHARE else "train"


def split_of_scene(scene: Scene) -> str:
    """The split of a scene of two or three objects."""
    a, b = scene.objects[:2]
    return split_of(tuple(o.kind for o in scene.objects), relation(a.x - b.x, a.y - b.y))


def generator(seed: int, split: str, index: int, stream: int) -> np.random.Generator:
    """The random stream number `stream` of one example; depends on nothing else."""
    entropy = (seed, choose(SPLITS, split, "split"), index, stream)
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy)))


def sample(seed: int, split: str, index: int, grid: int | None = GRID) -> Scene:
    """Scene number `index` of a split: 1, 2 and 3 objects in turn, a function of the arguments.

    Centres are multiples of 1 / grid, or anywhere if it is None.
    """
    rng = generator(seed, split, index, 0)
    count = index % 3 + 1
    kinds, stands = _draw_kinds(rng, split, count, held=(index // 3) % 2 == 0)
    names = tuple(SIZES)
    sizes = [names[i] for i in rng.integers(len(names), size=count)]
    centres = _place(rng, kinds, sizes, stands, grid)
    background = tuple(BACKGROUNDS)[rng.integers(len(BACKGROUNDS))]
    objects = tuple(
        Object(shape, colour, size, float(x), float(y))
        for (colour, shape), size, (x, y) in zip(kinds, sizes, centres, strict=True)
    )
    return Scene(objects, background)


def _draw_kinds(
    rng: np.random.Generator, split: str, count: int, held: bool
) -> tuple[tuple[Kind, ...], str]:
    """Draws kinds (and, for two, how they stand) until they belong to the split."""
    unseen = split == "test_unseen"
    pool = KINDS if unseen and (held or count == 1) else SEEN
    while True:
        kinds = tuple(pool[i] for i in rng.choice(len(pool), size=count, replace=False))
        stands = RELATIONS[rng.integers(len(RELATIONS))] if count == 2 else ""
        if count == 1:
            if unseen == (kinds[0] in HELD_OUT):
                return kinds, stands
        elif split_of(kinds, stands) == split:
            if pool is SEEN or any(kind in HELD_OUT for kind in kinds):
                return kinds, stands


def _place(
    rng: np.random.Generator,
    kinds: tuple[Kind, ...],
    sizes: list[str],
    stands: str,
    grid: int | None,
) -> np.ndarray:
    """Centres [n, 2] of objects that neither overlap nor leave the picture.

    Draws many candidates at once and takes the first one that fits, so that placements are
    uniform over all admissible ones.
    """
    radius = np.array([SIZES[size] for size in sizes])
    reach = np.array([REACH[shape] for _, shape in kinds]) * radius[:, None]  # [n, 2]
    low = RIM + reach
    for _ in range(20_000):  # three large crosses off the grid may need a million candidates
        u = rng.random((256, len(kinds), 2))
        if grid is None:
            centres = low + (1 - 2 * low) * u
        else:
            first = np.ceil(low * grid)  # of the multiples inside; the last is its mirror image
            centres = (first + np.floor((grid - 2 * first + 1) * u)) / grid
        for candidate in centres[_fit(centres, reach)]:
            if not stands or relation(*(candidate[0] - candidate[1])) == stands:
                return candidate.astype(np.float32)  # what a data set stores is then exact
    raise RuntimeError(f"No room for {kinds} of sizes {sizes}: SIZES, GAP and RIM do not fit.")


def _moved(o: Object, centre: np.ndarray) -> Object:
    return dataclasses.replace(o, x=float(centre[0]), y=float(centre[1]))


def _fit(centres: np.ndarray, reach: np.ndarray) -> np.ndarray:
    """Which centres [m, n, 2] of objects that reach [n, 2] keep all objects apart; bool [m]."""
    good = np.ones(len(centres), bool)
    for i, j in itertools.combinations(range(len(reach)), 2):
        d = centres[:, i] - centres[:, j]
        good &= (np.abs(d) >= reach[i] + reach[j] + GAP).any(1)
        most, least = np.abs(d).max(1), np.abs(d).min(1)
        good &= (most >= DRAWN_MARGIN) & (most - least >= DOMINANCE)
    return good


def possible(stated: Description) -> tuple[list[Scene], np.ndarray]:
    """All scenes of the data set that a caption can have been written for.

    Returns:
      The scenes, and how probable each is given the caption, [scenes], of sum 1: sizes and
      backgrounds are drawn evenly, and then the places evenly over those that are admissible.
    """
    backgrounds = [stated.background] if stated.background else list(BACKGROUNDS)
    options = [[o.size] if o.size else list(SIZES) for o in stated.objects]
    scenes, shares = [], []
    for sizes in itertools.product(*options):
        objects = [
            Object(o.shape, o.colour, size, 0.0, 0.0)
            for o, size in zip(stated.objects, sizes, strict=True)
        ]
        reach = np.array([o.reach for o in objects])
        places = []
        for low in RIM + reach:
            x, y = (np.arange(np.ceil(a * GRID), GRID - np.ceil(a * GRID) + 1) / GRID for a in low)
            places.append(list(itertools.product(x, y)))
        centres = np.array(list(itertools.product(*places)))  # [m, n, 2]
        admissible = centres[_fit(centres, reach)]
        found = [
            tuple(map(_moved, objects, c))
            for c in admissible
            if all(relation(*(c[i] - c[j])) == name for i, name, j in stated.relations)
        ]
        # Of two objects the relation is drawn before the places, of three it is what came of them.
        share = 1 / len(found if len(objects) == 2 else admissible) if found else 0.0
        scenes += [Scene(placed, b) for placed in found for b in backgrounds]
        shares += [share] * len(found) * len(backgrounds)
    return scenes, np.array(shares) / np.sum(shares)
