"""The judge, tried on many right, wrong and unrelated pictures."""

from __future__ import annotations

import numpy as np
import pytest

from vision_lang.shapes import splits
from vision_lang.shapes.batteries import RIGHT, UNRELATED, WRONG, picture, says
from vision_lang.shapes.draw import draw
from vision_lang.shapes.grammar import caption, parse
from vision_lang.shapes.oracle import grade, read


@pytest.mark.parametrize(("resolution", "count"), [(32, 100), (64, 24), (128, 8)])
@pytest.mark.parametrize("kind", RIGHT)
def test_right_pictures_pass(kind, resolution, count):
    failed = [n for n in range(count) if not grade(*picture(kind, n, resolution))["all_right"]]
    assert len(failed) <= (0 if kind == "clean" else count // 100), failed


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_pictures_do_not_pass(kind):
    assert [n for n in range(70) if grade(*picture(kind, n, 32))["all_right"]] == []


@pytest.mark.parametrize("kind", [kind for kind in UNRELATED if kind != "other_scene"])
def test_unrelated_pictures_do_not_pass(kind):
    assert [n for n in range(70) if grade(*picture(kind, n, 32))["all_right"]] == []


def test_another_scene_passes_exactly_if_the_caption_is_true_of_it():
    """Every caption on every picture of single objects and pairs; truth by brute force."""
    scenes = [splits.sample(5, "train", n) for n in range(120)]
    readings = [read(draw(scene, 32)) for scene in scenes]
    texts = [parse(caption(scene, np.random.default_rng(n))) for n, scene in enumerate(scenes)]
    passed = 0
    for scene, reading in zip(scenes, readings, strict=True):
        for text in texts:
            right = grade(reading, text)["all_right"]
            assert right == says(text, scene), (text, scene)
            passed += right
    assert len(scenes) < passed < 2 * len(scenes)  # its own, and a few by chance


@pytest.mark.slow
@pytest.mark.parametrize("resolution", [32, 64, 128])
@pytest.mark.parametrize("kind", [*RIGHT, *WRONG, *UNRELATED])
def test_full_batteries(kind, resolution):
    passed = sum(grade(*picture(kind, n, resolution))["all_right"] for n in range(1000))
    least, most = {"clean": (999, 1000)}.get(kind, (990, 1000) if kind in RIGHT else (0, 0))
    if kind == "other_scene":  # of which a short caption may be true
        most = 10
    assert least <= passed <= most
