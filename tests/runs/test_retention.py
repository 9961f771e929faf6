"""Which checkpoints stay, against what each rule says by itself."""

import itertools

import pytest

from vision_lang.errors import InputError
from vision_lang.runs import retention


def simulate(rule, scores):
    """Saves the steps 10, 20, ... one after the other; returns those that stay at the end."""
    there = {}
    for i, score in enumerate(scores, start=1):
        there[10 * i] = {} if score is None else {"m": score}
        staying = rule.stay(there, 10 * i)
        there = {step: metrics for step, metrics in there.items() if step in staying}
    return set(there)


@pytest.mark.parametrize("keep", [1, 2, 5])
@pytest.mark.parametrize("period", [0, 20])
@pytest.mark.parametrize("direction", ["", "m:min", "m:max"])
def test_all_orders_of_scores(keep, period, direction):
    for scores in itertools.product([1.0, 2.0, float("nan"), None], repeat=5):
        steps = [10 * i for i in range(1, 6)]
        wanted = set(steps[-keep:])
        wanted |= {s for s in steps if period and s % period == 0}
        numbers = [s for s in scores if s is not None and s == s]
        if direction and numbers:
            best = min(numbers) if direction == "m:min" else max(numbers)
            wanted.add(steps[scores.index(best)])
        assert simulate(retention.parse(keep, period, direction), scores) == wanted


@pytest.mark.parametrize(
    "fields", [(0, 0, ""), (1, -1, ""), (1, 0, "loss"), (1, 0, "loss:low"), (1, 0, ":min")]
)
def test_wrong_rules_are_refused(fields):
    with pytest.raises(InputError, match="keep"):
        retention.parse(*fields)


def test_a_metric_name_may_hold_colons_and_is_checked():
    rule = retention.parse(1, 0, "val/loss:ema:min")
    rule.check_metrics({})  # no evaluation at this step
    rule.check_metrics({"val/loss:ema": 1.0})
    with pytest.raises(InputError, match="Did you mean 'val/loss:ena'"):
        rule.check_metrics({"val/loss:ena": 1.0})
