"""Published layouts: what reference libraries saved is read, gives their outputs, and goes back."""

from __future__ import annotations

import pathlib
import re

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.pretrained import references
from vision_lang import pretrained
from vision_lang.pretrained.autoencoder import OLDER

FOLDER = pathlib.Path(__file__).parents[1] / "fixtures" / "references"
# Others are whole folders, of which convert makes runs.
CASES = sorted(p.name for p in FOLDER.iterdir() if references.read(p)[0] in pretrained.KINDS)


@pytest.mark.parametrize("case", CASES)
def test_outputs_are_the_librarys(case):
    references.compare(FOLDER / case)


def plain(name: str) -> str:
    """A published name without what writers do differently."""
    name = re.sub(r"^(text|vision)_model\.", "", name)
    match = re.fullmatch(r"(.*attentions\.\d+)\.(\w+)\.(\w+)", name)
    return f"{match[1]}.{OLDER.get(match[2], match[2])}.{match[3]}" if match else name


@pytest.mark.parametrize("case", [c for c in CASES if "keras" not in c])
def test_what_is_written_back_is_what_was_read_bit_for_bit(case, tmp_path):
    file = references.weights(FOLDER / case)
    model, variables = pretrained.load(references.read(FOLDER / case)[0], file)
    pretrained.save(model, variables, tmp_path / "model.safetensors")
    files = (file, tmp_path / "model.safetensors")
    theirs, ours = ({plain(n): array for n, array in load_file(f).items()} for f in files)
    left = theirs.keys() - ours.keys()
    assert not [
        n for n in left if not re.search(r"num_batches_tracked|^decoder\.block|^decoder\.final", n)
    ]
    for name, array in ours.items():
        assert np.array_equal(array, theirs[name]) and array.shape == theirs[name].shape, name
