"""The recognition task: its loss redone by hand, what counts, and draws that need no neighbours."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from configs import recognition as config_file
from tests.tasks import parts
from vision_lang.errors import InputError
from vision_lang.tasks import preprocessing, recognition_config
from vision_lang.training import setup

ROWS, SIDE, CLASSES = 6, 32, 3
FACTS = parts.facts(5, 3, CLASSES)


def make(facts=FACTS, **changes):
    """A tiny task; see `parts.change`."""
    config = config_file.get_config("tiny")
    parts.change(config, **changes)
    return recognition_config.from_config(config, facts)


def batch():
    return parts.batch(SIDE, labels=(0, 1, 2, 0, 1, 2))


def random_variables(task):
    """Of the task's shapes, with logits far from equal."""
    variables = parts.init(task)
    variables["params"]["encoder"]["logits"]["kernel"] *= 100
    return variables


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_the_cross_entropy_of_the_logits(smoothing):
    task = make(label_smoothing=smoothing, augmentation__pad=0)
    variables, data = random_variables(task), batch()
    logits = np.asarray(task.logits(variables, data["image"]), np.float64)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    own = -np.log(p[np.arange(ROWS), data["label"]])
    losses, mutable, metrics = parts.loss(task, variables, data, train=False)
    np.testing.assert_allclose(losses, own, rtol=1e-4)
    assert mutable == {}
    assert metrics["top1"] == ((p.argmax(1) == data["label"]).sum(), ROWS)
    # In training: the batch's own statistics, and smoothing spread over all classes.
    found, mutable, _ = parts.loss(task, variables, data, train=True)
    encoder = {c: tree["encoder"] for c, tree in variables.items()}
    x = preprocessing.symmetric(data["image"])
    (logits, _), _ = task.encoder.net.apply(encoder, x, train=True, mutable=["batch_stats"])
    log_p = np.asarray(jax.nn.log_softmax(logits), np.float64)
    wanted = -(1 - smoothing) * log_p[np.arange(ROWS), data["label"]] - smoothing * log_p.mean(1)
    np.testing.assert_allclose(found, wanted, rtol=1e-4)
    assert set(mutable) == {"batch_stats"} and set(mutable["batch_stats"]) == {"encoder"}


def test_rows_that_count_nothing_change_nothing():
    """A broken row has weight 0 and no label: others' losses and statistics are as without it."""
    task = make()
    variables, data = random_variables(task), batch()
    few = {name: value[:4] for name, value in data.items()}
    broken = data | {"weight": np.float32([1, 1, 1, 1, 0, 0])}
    broken |= {"label": np.int32([0, 1, 2, 0, -1, 1]), "image": data["image"].copy()}
    broken["image"][4:] = 0
    some, statistics, counts = parts.loss(task, variables, few, train=True)
    every, statistics_2, counts_2 = parts.loss(task, variables, broken, train=True)
    np.testing.assert_allclose(every[:4], some, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        statistics, statistics_2,
    )  # fmt: skip
    assert counts == counts_2


def test_a_head_by_angle_trains_features_of_length_one():
    task = make(model__margin__kind="arcface", model__margin__width=8)
    variables, data = parts.init(task), batch()
    found = task.layers(variables, data["image"])
    np.testing.assert_allclose(np.linalg.norm(found["embedding"], axis=1), 1, rtol=1e-5)
    plain = np.asarray(parts.loss(task, variables, data, train=False)[0])
    logits = np.asarray(task.logits(variables, data["image"]))
    np.testing.assert_allclose(
        plain,
        -np.asarray(jax.nn.log_softmax(logits))[np.arange(ROWS), data["label"]],
        rtol=1e-5,
        atol=1e-5,
    )
    grads = jax.grad(lambda v: parts.loss(task, v, data, train=True)[0].sum())(variables)
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(grads["params"]["head"]))


def test_a_training_that_mixes_pictures_can_begin():
    config = config_file.get_config("tiny")
    parts.change(config, augmentation__mixup=0.2, augmentation__cutmix=1.0)
    _, state = setup.start(config, recognition_config.from_config(config, FACTS))
    assert {"loss", "top1"} <= set(state.window)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_several_labels_are_questions_of_their_own(smoothing):
    """Also the label of an example without any of them, which is -1, takes nothing away."""
    task = make(multi_label=True, label_smoothing=smoothing, augmentation__pad=0)
    variables, data = random_variables(task), batch()
    several = [[1, 0, 0], [0, 0, 0], [1, 0, 1], [1, 1, 1], [0, 1, 0], [0, 0, 1]]
    data["labels"] = np.array(several, np.float32)
    data["label"] = np.int32([0, -1, 0, 0, 1, 2])
    data["weight"][5] = 0
    logits = np.asarray(task.logits(variables, data["image"]), np.float64)
    p = 1 / (1 + np.exp(-logits))
    np.testing.assert_allclose(task.probabilities(variables, data["image"]), p, rtol=1e-4)
    losses, _, metrics = parts.loss(task, variables, data, train=False)
    own = np.where(data["labels"], p, 1 - p)
    np.testing.assert_allclose(losses, -np.log(own).sum(1), rtol=1e-4)
    assert metrics["exact"] == ((own[:5] > 0.5).all(1).sum(), 5)
    # In training, with the batch's own statistics: a target between label and a half.
    found, _, _ = parts.loss(task, variables, data, train=True)
    encoder = {c: tree["encoder"] for c, tree in variables.items()}
    x = preprocessing.symmetric(data["image"])
    (logits, _), _ = task.encoder.net.apply(
        encoder, x, train=True, weight=data["weight"], mutable=["batch_stats"]
    )
    p = 1 / (1 + np.exp(-np.asarray(logits, np.float64)))
    target = np.where(data["labels"] > 0, 1 - smoothing / 2, smoothing / 2)
    wanted = -(target * np.log(p) + (1 - target) * np.log(1 - p)).sum(1)
    np.testing.assert_allclose(found, wanted, rtol=1e-3)


def test_preprocessing_is_what_the_weights_source_says():
    pixel = np.uint8([[[[255, 128, 0]]]])
    np.testing.assert_allclose(preprocessing.symmetric(pixel)[0, 0, 0], [1, 0.00392, -1], atol=1e-4)
    np.testing.assert_allclose(
        preprocessing.keras(pixel)[0, 0, 0], [-103.939, 128 - 116.779, 255 - 123.68], rtol=1e-6
    )
    wanted = [(1 - 0.485) / 0.229, (128 / 255 - 0.456) / 0.224, -0.406 / 0.225]
    np.testing.assert_allclose(preprocessing.torchvision(pixel)[0, 0, 0], wanted, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"facts": FACTS._replace(num_classes=0)}, "no classes"),
        ({"model__margin__kind": "arcfase"}, "'arcface'"),
        ({"model__margin__kind": "arcface", "augmentation__mixup": 0.2}, "mixup"),
        ({"model__margin__kind": "arcface", "multi_label": True}, "multi_label must be False"),
        ({"model__preprocessing": "kears"}, "'keras'"),
        ({"model__encoder__head": "none"}, "wants a head"),
        ({"model__dtype": "float16"}, "dtype"),
        ({"model__encoder__padding": "VALLID"}, "'VALID'"),
        ({"model__encoder__stages": ((4,),) * 6}, "makes nothing of pictures of 32"),
        (
            {"model__encoder__stages": ((4,),) * 4, "model__encoder__padding": "VALID"},
            "makes nothing of pictures of 32",
        ),
    ],
)
def test_wrong_configs_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        make(**changes)
