"""What the examples contributed (examples.json) is what the results are made of."""

from __future__ import annotations

import json

import numpy as np
import pytest

from vision_lang.runs import record

OF = {
    "recogniser": {"top1"},
    "captioner": {"scene_right", "cider"},
    "trained": {"all_right"},
}


@pytest.mark.parametrize("name", OF)
def test_their_mean_is_the_result(name, request):
    run = request.getfixturevalue(name)
    found = record.read(str(run))
    metrics = {f"{split}/{m}" for split in ("test", "test_unseen") for m in OF[name]}
    assert metrics <= found.examples.keys()
    for metric, values in found.examples.items():
        assert np.mean(list(values.values())) == pytest.approx(found.results[metric], rel=1e-12)
    (data,) = [json.loads((run / "data.json").read_text())["splits"]]
    for metric, values in found.examples.items():
        places = [int(place) for place in values]
        assert places == sorted(set(places)) and places[-1] < data[metric.partition("/")[0]]


def test_a_record_is_its_run(recogniser, tmp_path):
    """A file tells what the folder tells, but for where on this machine things lay."""
    told = record.read(str(recogniser))
    record.write(told, tmp_path / "r.json")
    again = record.read(str(tmp_path / "r.json"))
    assert str(recogniser.parent) not in (tmp_path / "r.json").read_text()
    other = {"config": 0, "starts": 0, "place": 0}
    assert vars(again) | other == vars(told) | other
    assert again.config.to_json() == told.config.to_json()
    assert again.final and again.seconds == told.seconds != 0
