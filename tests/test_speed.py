"""experiments/speed: the table is that of the record, and the measurer compares what it says."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from experiments.speed import contestant, floors, measure, quiet
from experiments.speed.case import OURS, Contest
from vision_lang.models.text_encoder import TextSpec
from vision_lang.models.unet import UNetSpec
from vision_lang.models.vgg import VGGS

FOLDER = Path(measure.__file__).parent


def test_the_tables_are_those_of_the_records():
    for path in sorted(FOLDER.glob("*.json")):
        record = json.loads(path.read_text())
        assert measure.table(record) in (FOLDER / "README.md").read_text(), path.name
        tried = {"small", "sides"} & record["machine"].keys()
        assert not tried, f"{path.name} is no whole measurement: {tried}"


def test_a_ratio_is_the_median_over_rounds_against_the_fastest_peer():
    times = {OURS: [1.0, 2.0, 9.0], "slow": [5.0, 5.0, 5.0], "fast": [2.0, 2.0, 3.0]}
    found = measure.compared(times)
    assert found["peer"] == "fast"
    assert found["ratio"] == 1.0  # of 0.5, 1 and 3
    assert found["ratio_quartiles"] == [0.75, 2.0]


def test_sides_that_do_other_work_are_refused():
    measure.check_same({OURS: {"parameters": 10, "mean": 1.0}, "peer": {"mean": 1.001}})
    with pytest.raises(measure.Failed, match="parameters is 10 in ours and 11 in peer"):
        measure.check_same({OURS: {"parameters": 10}, "peer": {"parameters": 11}})


def test_a_contestant_answers_each_line_with_a_unit():
    calls: list[None] = []

    def unit():
        calls.append(None)
        return float(len(calls))

    answers = io.StringIO()
    contestant.serve(lambda: Contest(unit, {"parameters": 3}), ["\n"] * 2, answers)
    ready, *rest = map(json.loads, answers.getvalue().splitlines())
    assert (ready["first_s"], ready["second_s"], ready["same"]) == (1.0, 2.0, {"parameters": 3})
    assert [answer["seconds"] for answer in rest] == [3.0, 4.0]


def test_every_case_has_ours_and_another_side():
    for name, case in contestant.cases().items():
        assert OURS in case.sides and len(case.sides) > 1, name


def test_others_are_what_is_busy_and_not_our_own():
    before, after = quiet.Look(0.0, 10.0, 1.0), quiet.Look(2.0, 14.0, 2.0)
    assert quiet.others(before, after) == 1.5


def test_the_operations_counted_by_hand_are_xlas():
    """But for what XLA leaves out, products with the zeros of the padding, and what it counts too:
    norms, activations, softmax."""
    import jax
    import jax.numpy as jnp

    from vision_lang.models.text_encoder import TextEncoder
    from vision_lang.models.unet import UNet
    from vision_lang.models.vgg import VGG

    def xla(network, *inputs, **fixed):
        made = lambda key: network.init(key, *inputs, **fixed)  # noqa: E731
        variables = jax.eval_shape(made, jax.random.key(0))
        function = jax.jit(lambda v, *inputs: network.apply(v, *inputs, **fixed)[0])
        return function.lower(variables, *inputs).cost_analysis()["flops"]  # type: ignore[index]

    spec = UNetSpec((32, 64), depth=(0, 1), heads=(2, 2), groups=8)
    x, time, context = jnp.zeros((1, 16, 16, 3)), jnp.zeros(1), jnp.zeros((1, 8, 48))
    assert floors.unet(spec, 16, 3, 8, 48) == pytest.approx(
        xla(UNet(spec, 3), x, time, context), rel=0.06
    )
    text = TextSpec(width=64, layers=2, heads=4)
    tokens = jnp.zeros((1, 32), jnp.int32)
    # The look-up of few tokens is a matrix product, which a floor need not have.
    looked_up = floors.dense(32, 100, 64)
    assert floors.text(text, 32) + looked_up == pytest.approx(
        xla(TextEncoder(text, 100, 32), tokens), rel=0.06
    )
    vgg = VGGS["11"]
    assert floors.vgg(vgg, 224, 10) == pytest.approx(
        xla(VGG(vgg, 10), jnp.zeros((1, 224, 224, 3)), train=False), rel=0.06
    )
