"""What a run notes about its data before its first step, and that it is held to it."""

from __future__ import annotations

import json

import pytest

from configs import diffusion
from tests.data.conftest import encode, plain, write_folder
from vision_lang.data import tokenizer
from vision_lang.errors import InputError
from vision_lang.runs import folder
from vision_lang.training import setup


@pytest.fixture
def config(tmp_path):
    """Of a run on a folder of 20 pictures, all in train."""
    lines = [{"file_name": f"{n}.png", "text": f"a dog {n}", "split": "train"} for n in range(20)]
    files = {f"{n}.png": encode(plain(n)) for n in range(20)}
    config = diffusion.get_config("tiny=true,data=folder")
    config.data.path = str(write_folder(tmp_path / "pictures", files, lines))
    config.data.dir = str(tmp_path / "data")
    return config


@pytest.fixture
def run(tmp_path):
    return folder.create(str(tmp_path / "run"), "diffusion")


def test_a_run_keeps_its_data_and_its_words(config, run):
    data, words = setup.prepare_data(config, run)
    assert json.loads(run.data.read_text())["splits"] == data.splits
    assert data.splits == {"train": 18, "validation": 2}  # held out
    assert tokenizer.load(run.tokenizer) == words
    assert setup.prepare_data(config, run)[1] == words


def test_a_run_whose_splits_are_others_now_is_refused(config, run):
    setup.prepare_data(config, run)
    stored = json.loads(run.data.read_text())
    run.data.write_text(json.dumps(stored | {"splits": {"train": 20}}))
    with pytest.raises(InputError, match=r"has changed since this run began \(splits .*20"):
        setup.prepare_data(config, run)


def test_a_tokenizer_that_cannot_be_written_is_named(config, run):
    run.tokenizer.mkdir()
    with pytest.raises(InputError, match="Cannot write .*tokenizer.json"):
        setup.prepare_data(config, run)
    assert not run.data.exists()
