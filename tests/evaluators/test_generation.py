"""Judges of drawn pictures, with hand-made runs: what the numbers are when it is known."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from tests.data.conftest import encode, write_folder
from vision_lang import evaluate, evaluators, keys
from vision_lang.data import presets, sources, tokenizer
from vision_lang.errors import InputError
from vision_lang.evaluators import drawing, features, make_evaluators
from vision_lang.evaluators.context import Context
from vision_lang.evaluators.generation import Generation
from vision_lang.metrics import caption
from vision_lang.models.inception import PUBLISHED_SHA256
from vision_lang.models.vgg import VGGS
from vision_lang.tasks.captioning import Decoding
from vision_lang.tasks.diffusion import Sampling
from vision_lang.tasks.example import example_spec
from vision_lang.training import parallel

SIDE, COUNT = 8, 24
# Dogs are dark, cats are bright.
TEXTS = {"cat": "one bright cat sleeps on the sofa", "dog": "a dark dog runs over some grass"}
NAMES = ["cat", "dog"]


def picture(n):
    """Number n of the data: odd ones are dogs, every one is its own."""
    random = np.random.default_rng(n)
    return random.integers(20, 90, (SIDE, SIDE, 3), np.uint8) + np.uint8(0 if n % 2 else 130)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    directory = tmp_path_factory.mktemp("animals")
    splits = ["test"] * COUNT + ["train"] * 6 + ["validation"]  # else a part of train is held out
    lines = [
        {"file_name": f"{n}.png", "text": TEXTS[NAMES[n % 2]], "label": NAMES[n % 2],
         "split": split}
        for n, split in enumerate(splits)
    ]  # fmt: skip
    files = {f"{n}.png": encode(picture(n)) for n in range(len(splits))}
    files[f"{COUNT}.png"] = encode(picture(0))  # number 0 of test is in train, too
    data = ConfigDict(presets.fields("folder"))
    data.path = str(write_folder(directory / "pictures", files, lines))
    data.dir, data.resolution = str(directory / "data"), SIDE
    return data, sources.prepare(data)


class Task:
    """What every judge may be asked; each looks at how bright a picture is."""

    def __init__(self, side):
        self.side = side

    def batch_spec(self):
        return example_spec(self.side)

    def init(self, key):
        return {}

    def bright(self, images):
        assert images.shape[1:] == (self.side, self.side, 3)
        return images.astype(jnp.float32).mean((1, 2, 3)) > 128

    def layers(self, variables, images):
        found = images.astype(jnp.float32) / 255
        return {"pool2": found, "fc6": found[:, 0], "logits": found.mean((1, 2))}

    def logits(self, variables, images):
        return jnp.stack([self.bright(images), ~self.bright(images)], -1).astype(jnp.float32)

    def embed_images(self, variables, images):
        return self.logits(variables, images)

    def embed_texts(self, variables, tokens, mask):
        return jnp.stack([tokens == 0, tokens == 1], -1).astype(jnp.float32)

    def describe(self, variables, images, keys, how):
        return SimpleNamespace(tokens=jnp.where(self.bright(images), 0, 1)[:, None, None])


WORDS = SimpleNamespace(
    decode=lambda row: TEXTS[NAMES[int(row[0])]],
    encode_batch=lambda texts, length: (np.array(["dog" in t for t in texts], np.int32),) * 2,
)


def judge(task, names=NAMES, side=SIDE, multi_label=False):
    """A run of `task` that sees pictures of `side` pixels."""
    encoder = {"stages": VGGS["11"].stages}
    config = ConfigDict({"task": task, "data": presets.fields("folder"), "decoding": {}})
    config.multi_label = multi_label
    config.data.resolution, config.model = side, ConfigDict({"encoder": encoder})
    config.decoding = ConfigDict(dataclasses.asdict(Decoding()))
    return SimpleNamespace(
        config=config, task=Task(side), variables={}, tokenizer=WORDS, class_names=list(names),
        source=f"{task}@9 (raw)", digest="abc",
    )  # fmt: skip


ALL = {"features": "r", "captioner": "d", "matcher": "m", "classifier": "r"}
RUNS = {"r": judge("recognition"), "d": judge("captioning"), "m": judge("contrastive")}


@pytest.fixture
def measure(prepared, monkeypatch):
    """measure(place -> picture, runs, **fields) -> the evaluator's Result at the end of a run;
    the picture that is drawn for an example depends on its place in the split."""
    data, source = prepared
    random = keys.make(0, "x")

    def run(drawn, runs=RUNS, condition="text", **fields):
        asked = []

        def draw(variables, tokens, mask, labels, places):
            asked.append((labels.tolist(), places.tolist()))
            for part in np.array_split(places, 3):
                yield np.stack([drawn(int(place)) for place in part])

        monkeypatch.setattr(drawing, "drawer", lambda *arguments: draw)
        config = ConfigDict({"task": "diffusion", "seed": 0, "data": data})
        config.sampling = ConfigDict(dataclasses.asdict(Sampling()))
        entry = dataclasses.asdict(Generation()) | {"layer": "pool2"} | fields
        config.evaluators = ConfigDict({"mine": entry})
        words = tokenizer.train(list(TEXTS.values()), 300)
        task = SimpleNamespace(condition=condition)
        context = Context(
            config, task, source, words, parallel.make("jit"), lambda spec: runs[spec]
        )
        result = make_evaluators(context)["mine"]({"raw": random}, True)
        return result, asked

    return run


def numbers_of(result):
    return {name.removeprefix("test/"): value for name, value in result.numbers.items()}


def test_the_real_pictures_are_right_in_everything(measure, prepared):
    order = prepared[1].open("test")
    result, asked = measure(lambda place: order[place]["image"], **ALL)
    found = numbers_of(result)
    assert found["fd_vgg11_pool2"] < 1e-6 and -1 < found["kd_vgg11_pool2"] < 0  # it has no bias
    assert found["precision_vgg11_pool2"] == found["recall_vgg11_pool2"] == 1
    assert found["coverage_vgg11_pool2"] == 1 and found["density_vgg11_pool2"] > 0.5
    assert found["recognised"] == found["recognised/cat"] == found["recognised/dog"] == 1
    assert found["match"] == found["match_real"] == 1
    assert found["cycle_bleu4"] == pytest.approx(1) and found["generated"] == COUNT
    same = caption.score(list(TEXTS.values()), [[text] for text in TEXTS.values()])
    assert found["cycle_cider"] == pytest.approx(same["CIDEr"]) and found["cycle_cider"] > 5
    assert not any("fid" in name or name == "fd" for name in found)
    assert [places for _, places in asked] == [list(range(COUNT))]  # drawn once, for all judges
    assert result.notes.keys() == ALL.keys()
    assert result.notes["features"] == "recognition@9 (raw), weights abc, resize to 8 px"


def test_a_clip_runs_match_is_the_clip_score(measure, prepared):
    order = prepared[1].open("test")
    runs = {"m": judge("clip")}
    found = numbers_of(measure(lambda place: order[place]["image"], runs, matcher="m")[0])
    assert found["clip_score"] == found["clip_score_real"] == 100 and "match" not in found


@pytest.mark.parametrize(("sha256", "names"), [
    (PUBLISHED_SHA256 + "0" * 56, ("fid", "kid")), ("", ("fd_inception_2048", "kd_inception_2048"))
])  # fmt: skip
def test_by_fids_own_weights_it_is_fid_of_pictures_as_they_are(measure, prepared, sha256, names):
    loaded = judge("features", side=299)
    loaded.config.model = ConfigDict({"network": "inception", "source_sha256": sha256})
    loaded.config.data.crop = "tensorflow1"  # no policy of ours
    order, seen = prepared[1].open("test"), []

    def fit(picture):
        seen.append(picture.shape)
        return picture.astype(np.float32)

    loaded.task.fit = fit
    loaded.task.layers = lambda variables, images: {"2048": images[:, 0, :4].reshape(-1, 12) / 255}
    found = numbers_of(
        measure(lambda place: order[place]["image"], {"i": loaded}, features="i", layer="")[0]
    )
    assert found[names[0]] < 1e-6 and -1 < found[names[1]] < 0
    assert [name for name in found if name[:2] in ("fi", "ki", "fd", "kd")] == list(names)
    assert set(seen) == {(SIDE, SIDE, 3)}


def test_other_pictures_are_not(measure, prepared):
    """The picture of the wrong animal for each prompt: the set is right, no single one is."""
    order = prepared[1].open("test")
    places = {label: np.flatnonzero(order.labels() == label) for label in (0, 1)}

    def wrong(place):
        other = places[1 - order.labels()[place]]
        return order[int(other[place % len(other)])]["image"]

    found = numbers_of(measure(wrong, **ALL)[0])
    assert found["recognised"] == found["recognised/dog"] == 0
    assert found["match"] == 0 and found["match_real"] == 1
    assert found["cycle_bleu4"] < 0.01 and found["cycle_cider"] < 0.5
    # Half of the drawn for half of the prompts: cats alone.
    cats = numbers_of(measure(lambda place: order[int(places[0][0])]["image"], **ALL)[0])
    assert cats["recognised"] == 0.5
    assert (cats["recognised/cat"], cats["recognised/dog"]) == (1, 0)


def test_a_shift_of_all_features_is_its_own_square(measure, prepared):
    """|m_a - m_b|^2 of equal covariances: 12 levels in each of three channels."""
    order = prepared[1].open("test")
    shifted = lambda place: order[place]["image"] + np.uint8(12)  # noqa: E731
    result, _ = measure(shifted, features="r")
    assert numbers_of(result)["fd_vgg11_pool2"] == pytest.approx(3 * (12 / 255) ** 2, rel=1e-4)


def test_a_judge_sees_pictures_at_its_own_resolution(measure, prepared):
    order = prepared[1].open("test")
    large = {name: judge(run.config.task, side=24) for name, run in RUNS.items()}
    result, _ = measure(lambda place: order[place]["image"], large, **ALL)
    found = numbers_of(result)
    assert found["fd_vgg11_pool2"] < 1e-6 and found["recognised"] == found["match"] == 1
    assert "resize to 24 px" in result.notes["classifier"]


def test_numbers_do_not_depend_on_the_device_batch(measure):
    random = np.random.default_rng(0).integers(0, 256, (COUNT, SIDE, SIDE, 3), np.uint8)
    found = [
        numbers_of(measure(lambda place: random[place], device_batch=size, **ALL)[0])
        for size in (5, 32)
    ]
    assert len(found[0]) == 14 and found[0] == pytest.approx(found[1], rel=1e-6, abs=1e-9)


def test_a_run_of_labels_is_asked_by_label(measure, prepared):
    order = prepared[1].open("test")
    result, asked = measure(
        lambda place: order[place]["image"], condition="label", captioner="d", final_count=6
    )
    (labels, places), *_ = asked
    assert places == [0, 4, 8, 12, 16, 20]  # evenly spaced
    assert labels == order.labels()[places].tolist()
    # "a photo of a dog" is what it was drawn for: the texts of the data are not.
    assert numbers_of(result)["cycle_bleu4"] < 0.1


def test_what_is_in_training_is_found(measure, prepared):
    train = prepared[1].open("train")
    copied, same = train[2]["image"], picture(0)
    result, _ = measure(lambda place: copied, shown=2)
    found = numbers_of(result)
    assert found["nearest"] == 0 < found["nearest_real"]
    order = prepared[1].open("test")
    real = np.stack([order[n]["image"] for n in range(COUNT)]).astype(float)
    others = np.stack([train[n]["image"] for n in range(len(train))]).astype(float)
    by_hand = (np.square(real[:, None] - others) / 255**2).mean((2, 3, 4)).min(1)
    assert 0 in by_hand and any((image == same).all() for image in others)
    assert found["nearest_real"] == pytest.approx(by_hand.mean())
    page = result.pictures["nearest/test"]
    assert page.dtype == np.uint8 and page.shape[1] > page.shape[0] / 2


@pytest.mark.parametrize(
    ("fields", "runs", "message"),
    [
        ({"classifier": "r"}, {"r": judge("recognition", NAMES[::-1])}, "same order.*wanted"),
        ({"classifier": "r"}, {"r": judge("recognition", [*NAMES, "cow"])}, "tells 3 classes"),
        ({"classifier": "r"}, {"r": judge("recognition", multi_label=True)}, "any number"),
        ({"classifier": "d"}, RUNS, "classifier=d is a captioning run; a run of recognition"),
        ({"features": "x"}, {"x": judge("diffusion")}, "features=x is a diffusion run"),
        ({"features": "r", "layer": "fc6", "final_count": 20}, RUNS, "20 .* too few .* 24 dim"),
        ({"features": "r", "layer": "fc9"}, RUNS, "'fc9'.*'fc6'"),
        ({"matcher": "m", "final_splits": ("tset",)}, RUNS, "split .*'tset'"),
    ],
)  # fmt: skip
def test_a_judge_that_cannot_judge_is_refused_at_once(measure, fields, runs, message):
    if fields.get("layer") == "fc6":  # [b, side, 3] is no vector: a layer of 24 dimensions
        runs = {"r": judge("recognition")}
        runs["r"].task.layers = lambda v, x: {"fc6": x[:, 0].reshape(len(x), -1) * 1.0}
    with pytest.raises(InputError, match=rf"config\.evaluators\.mine: .*{message}"):
        measure(None, runs, **fields)


def test_the_last_layer_is_the_last_that_is_computed():
    """Not the last by name, which is how JAX hands dicts back."""
    task = Task(SIDE)
    assert features.find_layer(task, "") == ("fc6", 3)
    model = {"encoder": {"stages": VGGS["16"].stages}}
    config = ConfigDict({"task": "recognition", "model": model})
    assert features.network(config, "fc7") == "vgg16_fc7"
    config.model.encoder.stages = ((3,),)
    assert features.network(config, "pool1") == "vgg_pool1"
    assert features.network(ConfigDict({"task": "clip"}), "pooled") == "clip_pooled"


def test_evaluate_asks_other_runs(trained, captioner, command, monkeypatch, tmp_path):
    """Real tasks and the real command; the run's own evaluators are measured elsewhere."""

    def only_this(context):
        context.config.evaluators = {"generation": context.config.evaluators.generation}
        return make_evaluators(context)

    monkeypatch.setattr(evaluators, "make_evaluators", only_this)
    monkeypatch.chdir(trained.parent)
    before = (trained / "results.json").read_text()
    outcome = command(
        evaluate.main, "--run=run", f"--captioner={captioner}", f"--features={captioner}@10:raw",
        "--layer=pool1", "--shown=2", "--count=8", f"--out={tmp_path}/x.json",
        f"--pictures={tmp_path}/pictures",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    found = json.loads((tmp_path / "x.json").read_text())
    assert found["test/fd_vggtiny_pool1"] > 0 and found["test/cycle_bleu4"] >= 0
    assert 0 <= found["test/cycle_scene_right"] <= 1 and found["test/generated"] == 8
    assert f"{captioner}@10 (raw)" in found["features"]
    assert (tmp_path / "pictures" / "nearest_test.png").exists()
    assert (trained / "results.json").read_text() == before
    wrong = command(evaluate.main, "--run=run", f"--classifier={captioner}")
    assert "is a captioning run" in wrong.sentence
