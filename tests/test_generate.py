"""The command that draws: image k is its own, metadata, and what is refused."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from vision_lang import generate, main
from vision_lang.evaluators import drawing
from vision_lang.tasks.diffusion import Sampling
from vision_lang.training import loop, parallel, setup

CIRCLE, SQUARE = "one small pink circle", "two objects: a red circle above a blue square"


@pytest.fixture
def draw(trained, tmp_path, command):
    """Runs the command; returns {(prompt, number): (pixels, metadata)}."""

    def run(*arguments):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        outcome = command(
            generate.main, f"--run={trained}", f"--out={folder}/out.png",
            f"--out_dir={folder}/single", *arguments,
        )  # fmt: skip
        assert outcome.code == 0, outcome
        assert outcome.out == f"{folder}/out.png\n"
        pictures = {}
        for path in sorted((folder / "single").iterdir()):
            with Image.open(path) as picture:
                facts = dict(picture.info)
                pictures[facts["prompt"], int(facts["number"])] = np.array(picture), facts
        grid = np.array(Image.open(folder / "out.png"))
        assert grid.shape[0] > 100 and grid.std() > 1
        return pictures

    return run


def assert_equal(a, b, keys):
    for key in keys:
        np.testing.assert_array_equal(a[key][0], b[key][0])


def test_a_picture_depends_on_its_prompt_number_and_seed_alone(draw, trained):
    many = draw(f"--prompt={CIRCLE}", f"--prompt={SQUARE}", "--num=5")  # two batches
    few = draw(f"--prompt={SQUARE}", f"--prompt={CIRCLE}", "--num=2")
    assert set(many) == {(p, k) for p in (CIRCLE, SQUARE) for k in range(5)}
    assert set(few) == {(p, k) for p in (CIRCLE, SQUARE) for k in range(2)}
    assert_equal(many, few, few)
    different = {pixels.tobytes() for pixels, _ in many.values()}
    assert len(different) == 10  # a number is a picture of its own, a prompt too
    other = draw(f"--prompt={SQUARE}", "--num=1", "--seed=1")
    assert not np.array_equal(other[SQUARE, 0][0], few[SQUARE, 0][0])
    pixels, facts = other[SQUARE, 0]
    assert pixels.shape == (32, 32, 3) and pixels.dtype == np.uint8
    assert (facts["prompt"], facts["seed"], facts["number"]) == (SQUARE, "1", "0")
    assert facts["run"] == str(trained) and "@20 (ema)" in facts["weights"]
    sampling = json.loads(facts["sampling"])
    assert sampling == json.loads((trained / "config.json").read_text())["sampling"]


def test_weights_steps_and_guidance_are_taken(draw, trained):
    arguments = (f"--prompt={CIRCLE}", "--num=1")
    ema = draw(*arguments)[CIRCLE, 0][0]
    raw, facts = draw(*arguments, "--weights=raw")[CIRCLE, 0]
    assert "@20 (raw)" in facts["weights"] and not np.array_equal(raw, ema)
    early, facts = draw(*arguments, f"--run={trained}@10")[CIRCLE, 0]
    assert "@10 (ema)" in facts["weights"] and not np.array_equal(early, ema)
    fixed, facts = draw(*arguments, "--eta=0")[CIRCLE, 0]
    assert json.loads(facts["sampling"])["eta"] == 0 and not np.array_equal(fixed, ema)
    # Without a condition's weight every prompt gives the same picture of a number.
    free = draw(*arguments, f"--prompt={SQUARE}", "--guidance=0")
    np.testing.assert_array_equal(free[CIRCLE, 0][0], free[SQUARE, 0][0])


def test_pictures_agree_across_device_batches(trained):
    loaded = setup.load(str(trained))
    tokens, mask = loaded.tokenizer.encode_batch([CIRCLE, SQUARE, CIRCLE], 32)
    conditions = (tokens, mask, np.full(3, -1, np.int32), np.array([0, 0, 1]))
    found = []
    for size in (8, 3):
        draw = drawing.drawer(
            loaded.task, parallel.make("pmap"), Sampling(**loaded.config.sampling), 0, size
        )
        found.append(np.concatenate(list(draw(loaded.variables, *conditions))).astype(int))
    assert np.abs(found[0] - found[1]).max() <= 2


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ((), "--prompt"),
        (("--label=0",), "draws from text"),
        (("--prompt=" + "very " * 60 + "red",), "32"),
        (("--prompt=a", "--sampler=dpmpp2m"), "'dpmpp_2m'"),
        (("--prompt=a", "--num=0"), "num"),
        (("--prompt=a", "--steps=many"), "whole number"),
        (("--prompt=a", "--steps=10001"), "[0, 10000]"),
        (("--prompt=a", "--guidance=nan"), "--guidance=nan: a finite number"),
        (("--prompt=a", "--eta=inf"), "--eta=inf: a finite number"),
        (("--prompt=a", "--eta=-inf"), "--eta=-inf: a finite number"),
        (("--prompt=a", "--weights=best"), "weights"),
        (("--promt=a",), "promt"),
        (("--run=absent", "--prompt=a"), "does not exist"),
        (("--run={trained}@15", "--prompt=a"), "15"),
    ],
)
def test_bad_input_is_one_sentence(trained, command, arguments, part):
    arguments = (a.replace("{trained}", str(trained)) for a in arguments)
    sentence = command(generate.main, f"--run={trained}", *arguments).sentence
    assert part in sentence and len(sentence.strip().splitlines()) == 1


def test_no_run_is_one_sentence(command):
    assert "--run" in command(generate.main, "--prompt=a").sentence


def test_a_run_without_a_checkpoint(trained, tmp_path, command):
    shutil.copytree(trained, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    sentence = command(generate.main, f"--run={tmp_path / 'run'}", "--prompt=a").sentence
    assert "no finished checkpoint" in sentence and f"--workdir={tmp_path / 'run'}" in sentence


def test_the_command_that_main_recommends_is_understood(trained, command, monkeypatch):
    import shlex

    line = (trained.parent / "run.out").read_text().splitlines()[-1]
    words = shlex.split(line.partition("vision_lang.generate")[2])
    monkeypatch.setattr(generate, "_run", lambda: None)
    assert len(words) == 3 and command(generate.main, *words).code == 0
    monkeypatch.setattr(loop, "train", lambda *_: {})
    assert command(main.main, f"--workdir={trained}").out.splitlines()[-1].endswith("--out=out.png")


def test_a_config_of_another_version_is_refused(trained, tmp_path, command):
    run = shutil.copytree(trained, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    del config["caption_drop"]
    (run / "config.json").write_text(json.dumps(config))
    outcome = command(generate.main, f"--run={run}", "--prompt=a", f"--out={tmp_path}/out.png")
    assert "caption_drop" in outcome.sentence and "provenance.json" in outcome.sentence
