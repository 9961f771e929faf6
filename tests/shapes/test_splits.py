"""What the splits promise: scenes as stated, and meanings held apart."""

from __future__ import annotations

import dataclasses
import itertools
import subprocess
import sys

import numpy as np
import pytest

from vision_lang.errors import InputError
from vision_lang.shapes import splits
from vision_lang.shapes.draw import draw_float
from vision_lang.shapes.grammar import caption, describe, meaning, parse
from vision_lang.shapes.scene import Scene, holds, relation

NEVER_IN_TRAIN = {
    ("purple", "circle"), ("cyan", "square"), ("green", "triangle"), ("pink", "plus"),
    ("yellow", "cross"), ("orange", "ring"),
}  # fmt: skip


@pytest.fixture(scope="module")
def scenes() -> dict[str, list[Scene]]:
    counts = {"train": 4500, "validation": 600, "test": 900, "test_unseen": 600}
    return {name: [splits.sample(0, name, i) for i in range(n)] for name, n in counts.items()}


@pytest.fixture(scope="module")
def texts(scenes) -> dict[str, list[str]]:
    return {
        name: [caption(s, splits.generator(0, name, i, 1)) for i, s in enumerate(row)]
        for name, row in scenes.items()
    }


def _pairs(scene: Scene) -> set[frozenset]:
    return {frozenset(p) for p in itertools.combinations((o.kind for o in scene.objects), 2)}


def test_relations_by_hand():
    assert relation(-0.3, 0.2) == "left of" and relation(0.3, -0.2) == "right of"
    assert relation(0.1, -0.2) == "above" and relation(0.1, 0.2) == "below"
    # A at (0.2, 0.2), B at (0.5, 0.35): A is left of B and above it.
    assert holds("left of", -0.3, -0.15) and holds("above", -0.3, -0.15)
    assert not holds("right of", -0.3, -0.15) and not holds("below", -0.3, -0.15)
    assert not holds("above", -0.3, -0.09)


def test_a_scene_depends_on_its_three_numbers_alone(scenes):
    code = (
        "import vision_lang.shapes.splits as s; s.sample(3, 'train', 1); "
        "print(repr(s.sample(0, 'test', 7)))"
    )
    fresh = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert fresh.stdout.strip() == repr(scenes["test"][7])
    many = [s for row in scenes.values() for s in row if len(s.objects) > 1]
    assert len({repr(s) for s in many}) > 0.99 * len(many) == 0.99 * 4400
    assert splits.sample(1, "test", 7) != splits.sample(0, "test", 7)
    with pytest.raises(InputError, match="Did you mean 'train'"):
        splits.sample(0, "trian", 0)


def test_scenes_are_as_stated(scenes):
    """Equal shares of 1, 2, 3; everything occurs; margins; whole objects with room between."""
    for row in scenes.values():
        assert {n: sum(len(s.objects) == n for s in row) for n in (1, 2, 3)} == dict.fromkeys(
            (1, 2, 3), len(row) // 3
        )
        for scene in row:
            assert len({o.kind for o in scene.objects}) == len(scene.objects)
            for a, b in itertools.combinations(scene.objects, 2):
                dx, dy = abs(a.x - b.x), abs(a.y - b.y)
                assert max(dx, dy) >= 0.2 - 1e-6 and abs(dx - dy) >= 0.04 - 1e-6
            for o in scene.objects:
                assert o.x * 8 % 1 == 0 and o.y * 8 % 1 == 0
    train = scenes["train"]
    objects = [o for s in train for o in s.objects]
    assert len({o.shape for o in objects}) == 6 and len({o.colour for o in objects}) == 8
    assert {(o.colour, o.shape) for o in objects} == set(
        itertools.product({o.colour for o in objects}, {o.shape for o in objects})
    ) - NEVER_IN_TRAIN
    assert abs(np.mean([o.size == "small" for o in objects]) - 0.5) < 0.03
    for ground in ("white", "black", "grey", "brown"):
        assert abs(np.mean([s.background == ground for s in train]) - 0.25) < 0.04
    stands = [
        relation(s.objects[0].x - s.objects[1].x, s.objects[0].y - s.objects[1].y)
        for s in train if len(s.objects) == 2
    ]  # fmt: skip
    for name in ("left of", "right of", "above", "below"):
        assert abs(stands.count(name) / len(stands) - 0.25) < 0.05


@pytest.mark.parametrize("grid", [4, None])
def test_objects_are_whole_and_apart(grid):
    """By pixels, at 64 px: no object touches the rim, and 2 px lie between any two (1 of 32)."""
    for index in range(2, 300, 3):
        scene = splits.sample(0, "train", index, grid)
        masks = []
        for o in scene.objects:
            alone = draw_float(Scene((o,), "black"), 64)
            masks.append((np.abs(alone - alone[0, 0]) > 1e-9).any(-1))
        for mask in masks:
            assert not (mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any())
        for a, b in itertools.combinations(masks, 2):
            near = np.zeros_like(a)
            for dy, dx in itertools.product((-1, 0, 1), repeat=2):
                near |= np.roll(a, (dy, dx), (0, 1))
            assert not (near & b).any()


def test_no_caption_of_two_or_more_objects_means_what_one_of_another_split_means(texts):
    """Compared through the sentences, as a reader of the captions would."""
    means = {
        name: {m for m in map(meaning, row) if len(m[0]) > 1} for name, row in texts.items()
    }  # fmt: skip
    for one, other in itertools.combinations(means, 2):
        assert not means[one] & means[other], (one, other)
    # Three objects: not even the same three kinds, whatever is said of them.
    threes = {name: {m[0] for m in row if len(m[0]) == 3} for name, row in means.items()}
    for one, other in itertools.combinations(threes, 2):
        assert not threes[one] & threes[other], (one, other)


def test_the_key_is_the_meaning():
    a, b, c = ("red", "circle"), ("blue", "square"), ("green", "ring")
    assert splits.key((a, b), "left of") == splits.key((b, a), "right of")
    assert splits.key((a, b), "above") == splits.key((b, a), "below")
    assert len({splits.key((a, b), r) for r in ("left of", "right of", "above", "below")}) == 4
    assert splits.key((a, b, c), "above") == splits.key((c, a, b), "left of")


def test_unseen_scenes_hold_something_held_out(scenes):
    assert len(NEVER_IN_TRAIN) >= 0.1 * 48
    seen = [s for name in ("train", "validation", "test") for s in scenes[name]]
    assert not {o.kind for s in seen for o in s.objects} & NEVER_IN_TRAIN
    together = set().union(*(_pairs(s) for s in seen))
    news = {"kind": 0, "pair": 0}
    for scene in scenes["test_unseen"]:
        if {o.kind for o in scene.objects} & NEVER_IN_TRAIN:
            news["kind"] += 1
        else:
            assert _pairs(scene) - together, scene
            news["pair"] += 1
    assert news == {"kind": 400, "pair": 200}


def test_all_other_pairs_of_kinds_stand_together_in_train(scenes):
    """861 pairs of the 42 seen kinds; about 5 % are held out, and the others all occur."""
    together = set().union(*(_pairs(s) for s in scenes["train"]))
    apart = {frozenset(p) for p in itertools.combinations(splits.SEEN, 2) if splits.apart(*p)}
    assert 20 <= len(apart) <= 70 and not apart & together
    assert len(together) >= 0.98 * (861 - len(apart))


@pytest.mark.parametrize("grid", [4, None])
def test_there_is_room_for_the_three_widest(grid):
    kinds = (("pink", "cross"), ("red", "cross"), ("blue", "cross"))
    for seed in range(4):
        rng = np.random.default_rng(seed)
        centres = splits._place(rng, kinds, ["large"] * 3, "", grid)
        assert centres.shape == (3, 2)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_possible_scenes_of_a_caption_are_those_that_are_drawn(count):
    """Its own scene is one of them, and of the same objects drawn anew none is missing."""
    index = 3 * 5 + count - 1  # numbers of objects come in turn
    scene = splits.sample(0, "test", index)
    text = caption(scene, splits.generator(0, "test", index, 1))
    scenes, shares = splits.possible(parse(text))
    unordered = [(frozenset(s.objects), s.background) for s in scenes]
    assert (frozenset(scene.objects), scene.background) in unordered
    assert len(set(unordered)) == len(scenes)
    assert shares.min() > 0 and abs(shares.sum() - 1) < 1e-12
    everything = describe(scene)
    few, _ = splits.possible(everything)
    assert {tuple(describe(s).relations) for s in few} == {everything.relations}
    if count < 3:  # sizes are drawn before the places: each is as probable, however many fit
        open_sizes = [dataclasses.replace(o, size=None) for o in everything.objects]
        every, shares = splits.possible(dataclasses.replace(everything, objects=tuple(open_sizes)))
        totals: dict[tuple[str, ...], float] = {}
        for s, share in zip(every, shares, strict=True):
            sizes = tuple(o.size for o in s.objects)
            totals[sizes] = totals.get(sizes, 0.0) + share
        np.testing.assert_allclose(list(totals.values()), 0.5**count, rtol=1e-9)
    rng = np.random.default_rng(0)
    stands = relation(
        scene.objects[0].x - scene.objects[-1].x, scene.objects[0].y - scene.objects[-1].y
    )
    drawn = set()
    for _ in range(1500):
        places = splits._place(
            rng,
            tuple(o.kind for o in scene.objects),
            [o.size for o in scene.objects],
            stands if count == 2 else "",
            splits.GRID,
        )
        moved = [
            dataclasses.replace(o, x=float(x), y=float(y))
            for o, (x, y) in zip(scene.objects, places, strict=True)
        ]
        drawn.add(Scene(tuple(moved), scene.background))
    assert {s for s in drawn if describe(s).relations == everything.relations} == set(few)
