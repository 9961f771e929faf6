"""Every config: its tiny variant trains, its values survive JSON, its examples parse."""

from __future__ import annotations

import fnmatch
import importlib
import re
import shlex

import jax
import numpy as np
import pytest

from tests import commands
from tests.training.on_devices import Tokenizer
from vision_lang.runs import config as config_lib
from vision_lang.training import parallel, setup

FILES = sorted(
    p for p in (commands.ROOT / "configs").glob("*.py") if p.stem not in ("common", "__init__")
)
# config -> arguments that choose other models or other data
VARIANTS = {
    "diffusion": (
        "", "tiny", "tiny,condition=label", "data=folder", "data=fashion_mnist,condition=label",
        "size=sd15", "size=sd21", "data=coco_captions,size=sd15", "autoencoder=small",
        "text=t5_v1_1_small", "size=sd15,text=t5_v1_1_xxl", "averages=post_hoc",
    ),
    "recognition": ("", "tiny", "data=folder", "data=fashion_mnist,size=5", "size=16"),
    "verification": ("", "tiny", "data=folder,margin=cosface"),
    "contrastive": ("", "tiny", "data=folder", "size=16,text=clip_l14"),
    "clip": ("", "tiny", "data=coco_captions", "data=imagenet2012,vision=clip_l14,text=clip_l14"),
    "captioning": ("", "tiny", "data=folder", "data=coco_captions,size=16,decoder=gpt2"),
    "autoencoder": ("", "tiny", "tiny,perceptual", "data=folder", "size=sd"),
}  # fmt: skip
CASES = [(name, argument) for name, several in VARIANTS.items() for argument in several]
TINY = [(name, argument) for name, argument in CASES if argument.startswith("tiny")]
# Whole runs of three are fixtures of other tests (conftest.py), which compile the same anyway, and
# the others take long to compile.
SLOW = [(name, "tiny") for name in ("diffusion", "recognition", "captioning", "verification")]
SLOW.append(("diffusion", "tiny,condition=label"))
SLOW += [("autoencoder", "tiny"), ("autoencoder", "tiny,perceptual")]
STEPS = [pytest.param(*c, marks=pytest.mark.slow if c in SLOW else ()) for c in TINY]
LABELLED = ("recognition", "verification")
COMMANDS = (
    "main",
    "generate",
    "evaluate",
    "recognize",
    "describe",
    "extract",
    "search",
    "convert",
    "export",
    "archive",
)


def batch_of(task, rows):
    """Any numbers in the shapes that the task asks for."""
    rng = np.random.default_rng(0)
    make = lambda s: rng.integers(0, 2, (rows, *s.shape)).astype(s.dtype)  # noqa: E731
    batch = {name: make(spec) for name, spec in task.batch_spec().items()}
    return batch | {"weight": np.ones(rows, np.float32), "index": np.arange(rows, dtype=np.int32)}


def load(name, argument):
    return config_lib.load(f"{commands.ROOT}/configs/{name}.py:{argument}")


def test_every_config_has_its_cases():
    assert {path.stem for path in FILES} == set(VARIANTS) == {name for name, _ in TINY}


@pytest.mark.parametrize(("name", "argument"), STEPS)
def test_the_tiny_variant_steps(name, argument):
    config = load(name, argument)
    classes = 3 if "label" in argument or name in LABELLED else 0
    task = setup.make_task(config, Tokenizer(), classes)
    way = parallel.make(config.parallel, config.batch_size)
    step, state = setup.start(config, task)
    state, bad = way.step(step)(
        way.place_state(state), way.place(batch_of(task, config.batch_size))
    )
    total, count = jax.device_get(state.window["loss"])
    assert int(bad) == 0 and count * way.devices == config.batch_size and 0 < total / count < 100


@pytest.mark.parametrize(("name", "argument"), CASES)
def test_every_value_survives_json(name, argument):
    config = load(name, argument)
    again = config_lib.from_json(config_lib.to_json(config))
    assert config_lib.differences(config, again) == {}
    assert again.is_locked and config.is_locked
    assert config_lib.to_json(again) == config_lib.to_json(config)


@pytest.mark.parametrize(("name", "argument"), CASES)
def test_every_variant_builds_a_task(name, argument):
    config = load(name, argument)
    classes = 3 if "label" in argument or name in LABELLED else 0
    spec = setup.make_task(config, Tokenizer(), classes).batch_spec()
    assert spec["image"].shape == (config.data.resolution, config.data.resolution, 3)


def test_every_default_is_in_range_and_every_range_is_of_a_field():
    fields = set()
    for name, argument in CASES:
        config = load(name, argument)
        config_lib.check_ranges(config)
        fields |= set(config_lib.flatten(config))
    for _, _, patterns in config_lib.RANGES:
        for pattern in patterns.split():
            assert fnmatch.filter(fields, pattern), pattern


def examples():
    """(command, arguments) of each example in a docstring; patterns with brackets are none."""
    modules = [f"vision_lang.{name}" for name in COMMANDS] + [f"configs.{p.stem}" for p in FILES]
    for module in modules:
        text = importlib.import_module(module).__doc__.replace("\\\n", " ")  # type: ignore[union-attr]
        for name, words in re.findall(r"python -m vision_lang\.(\w+) ([^\n]*)", text):
            if "[" not in words:
                yield name, shlex.split(re.split(r"\s{4,}[a-z]", words)[0])


EXAMPLES = list(examples())


def test_there_are_examples():
    assert {name for name, _ in EXAMPLES} >= {"main", "generate"} and len(EXAMPLES) >= 6


@pytest.mark.parametrize(
    ("name", "words"), EXAMPLES, ids=lambda v: v if isinstance(v, str) else None
)
def test_examples_in_docstrings_parse(trained, command, monkeypatch, name, words):
    module = importlib.import_module(f"vision_lang.{name}")
    monkeypatch.setattr(module, "_run", lambda *_: None)
    monkeypatch.chdir(commands.ROOT)
    words = [re.sub(r"=(RUN|DIR)(?=$|/)", f"={trained}", word) for word in words]
    words = ["--config.seed=1" if word == "--config.field=value" else word for word in words]
    outcome = command(module.main, *words)
    assert outcome.code == 0, outcome
