"""Data sets by name: the presets on tiny copies of their real feature structure, and any other."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ml_collections import ConfigDict
from tensorflow_datasets import features as f

from tests.data.conftest import Examples, encode, plain, write_tfds
from vision_lang.data import pipeline, presets, sources
from vision_lang.errors import InputError

Config = Callable[..., ConfigDict]
WNIDS = [f"n{number:08d}" for number in range(1_440_764, 1_441_764)]
FLOWERS = ["pink primrose", "hard-leaved pocket orchid", "iris"]
CIFAR = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]

COCO_FEATURES = f.FeaturesDict(
    {
        "image": f.Image(encoding_format="jpeg"),
        "image/filename": f.Text(),
        "image/id": np.int64,
        "objects": f.Sequence(
            {
                "id": np.int64,
                "area": np.int64,
                "bbox": f.BBoxFeature(),
                "label": f.ClassLabel(num_classes=80),
                "is_crowd": np.bool_,
            }
        ),
        "captions": f.Sequence({"text": np.str_, "id": np.int64}),
    }
)


def labelled(count: int, classes: int, size: int = 8, **more: Any) -> list[dict[str, Any]]:
    """Pictures whose grey value is their number, with labels in turn."""
    return [
        {"image": encode(plain(n, size)), "label": n % classes}
        | {key: value.format(n) for key, value in more.items()}
        for n in range(count)
    ]


def coco(first: int, count: int) -> list[dict[str, Any]]:
    box = f.BBox(ymin=0.1, xmin=0.1, ymax=0.5, xmax=0.6)
    thing = {"id": 1, "area": 9, "bbox": box, "label": 3, "is_crowd": False}
    return [
        {
            "image": encode(np.full((20, 30, 3), n, np.uint8), "JPEG", quality=95),
            "image/filename": f"COCO_{n:012d}.jpg",
            "image/id": n,
            "objects": [thing] * (n % 3),
            "captions": [{"text": f"Caption {k} of {n}.", "id": 10 * n + k} for k in range(5)],
        }
        for n in range(first, first + count)
    ]


def image_and_label(names: list[str], **more: Any) -> f.FeaturesDict:
    return f.FeaturesDict({"image": f.Image(), "label": f.ClassLabel(names=names), **more})


def write(name: str, directory: Path) -> None:
    """A tiny copy of a public data set, with the features that TFDS gives it."""
    features: f.FeaturesDict
    splits: Examples
    if name == "imagenet2012":
        features = image_and_label(WNIDS, file_name=f.Text())
        splits = {
            "train": labelled(100, 3, 300, file_name="n_{}.JPEG"),
            "validation": labelled(4, 3),
        }
        for example in [*splits["train"], *splits["validation"]]:
            example.setdefault("file_name", "val.JPEG")
    elif name == "coco_captions/2014":
        features = COCO_FEATURES
        splits = {"train": coco(0, 4), "val": coco(4, 2), "test": coco(6, 2), "restval": coco(8, 3)}
    elif name == "cifar10":
        features = f.FeaturesDict({"id": f.Text(), "image": f.Image(shape=(32, 32, 3)),
                                   "label": f.ClassLabel(names=CIFAR)})  # fmt: skip
        splits = {
            "train": labelled(20, 10, 32, id="train_{}"),
            "test": labelled(5, 10, 32, id="test_{}"),
        }
    elif name == "fashion_mnist":
        kinds = f.ClassLabel(names=list(presets.FASHION_CLASSES))
        features = f.FeaturesDict({"image": f.Image(shape=(28, 28, 1)), "label": kinds})
        grey = [{"image": encode(plain(n, 28)[..., 0]), "label": n % 10} for n in range(50)]
        splits = {"train": grey, "test": grey[:10]}
    elif name == "oxford_flowers102":
        features = image_and_label(FLOWERS, file_name=f.Text())
        flowers = labelled(6, 3, 20, file_name="image_{}.jpg")
        splits = {"train": flowers, "test": flowers, "validation": flowers}
    else:
        features = f.FeaturesDict({"label": f.Text(), "image": f.Image(shape=(250, 250, 3))})
        people = ["George_W_Bush", "Ann_Veneman"]
        splits = {
            "train": [{"image": encode(plain(n, 250)), "label": people[n % 2]} for n in range(20)]
        }
    write_tfds(directory, name, features, splits)


# data set -> (splits, its number of classes, a text, resolution)
EXPECTED = {
    "imagenet2012": ({"train": 99, "validation": 1, "test": 4}, 1000, "a photo of a goldfish", 224),
    "coco_captions": ({"train": 7, "validation": 2, "test": 2}, None, "Caption 0 of 6.", 64),
    "cifar10": ({"train": 18, "validation": 2, "test": 5}, 10, "a photo of an airplane", 32),
    "fashion_mnist": (
        {"train": 46, "validation": 4, "test": 10}, 10, "a photo of an ankle boot", 32,
    ),
    "oxford_flowers102": (
        {"train": 6, "validation": 6, "test": 6}, 3, "a photo of an iris, a type of flower", 64,
    ),
    "lfw": ({"train": 16, "validation": 2, "test": 2}, 2, "a photo of George W Bush", 64),
}  # fmt: skip


@pytest.mark.parametrize("name", EXPECTED)
def test_preset_reads_its_real_structure(config: Config, tmp_path: Path, name: str) -> None:
    splits, classes, text, resolution = EXPECTED[name]
    write(presets.PRESETS[name].tfds or name, tmp_path / "prepared")
    data = config(name)
    prepared = sources.prepare(data)
    assert prepared.splits == splits
    assert (prepared.class_names and len(prepared.class_names)) == classes
    texts = [text for split in splits for row in prepared.open(split).captions() for text in row]
    assert text in texts
    for split, count in splits.items():
        source = prepared.open(split)
        assert len(source) == count
        batches = list(pipeline.eval_batches(source, None, data=data, batch_size=8))
        images = np.concatenate([batch["image"] for batch in batches])[:count]
        assert images.shape == (count, resolution, resolution, 3)
        labels = np.concatenate([batch["label"] for batch in batches])[:count]
        np.testing.assert_array_equal(labels, source.labels())
        for n in range(count):  # the grey value is the number, and the label its remainder
            value = int(source[n]["image"].mean().round())
            centre = images[
                n, resolution // 4 : -resolution // 4, resolution // 4 : -resolution // 4
            ]
            assert abs(float(centre.mean()) - value) < 1.5
            if name == "lfw":
                assert labels[n] == 1 - value % 2  # names sorted: Ann is 0
            else:
                assert labels[n] == (
                    -1 if classes is None else value % min(classes, 3 if classes != 10 else 10)
                )


def test_coco_keeps_five_captions_and_the_file_name(config: Config, tmp_path: Path) -> None:
    write("coco_captions/2014", tmp_path / "prepared")
    source = sources.prepare(config("coco_captions")).open("train")
    for n in range(len(source)):
        example = source[n]
        number = int(example["name"].split("_")[1][:-4])
        assert example["texts"] == tuple(f"Caption {k} of {number}." for k in range(5))
        assert example["image"].shape == (20, 30, 3)


def test_a_split_that_would_be_empty_is_not_there(config: Config, tmp_path: Path) -> None:
    directory = write_tfds(
        tmp_path / "here", "cifar10", image_and_label(CIFAR), {"train": labelled(3, 3)}
    )
    data = config("cifar10", path=str(directory))
    prepared = sources.prepare(data)
    assert prepared.splits == {"train": 3}
    with pytest.raises(InputError, match="Unknown split .*'validation'. Known: train"):
        prepared.open("validation")


def test_imagenets_names_are_in_the_order_of_its_labels() -> None:
    names = presets.readable_class_names(WNIDS)
    assert (
        names[0] == "tench" and names[207] == "golden retriever" and names[999] == "toilet tissue"
    )
    assert presets.readable_class_names(["n00000001"]) == ["n00000001"]


def test_any_other_tfds_data_set(config: Config, tmp_path: Path) -> None:
    features = f.FeaturesDict({
        "photo": {"view": f.Image()}, "notes": f.Sequence({"body": f.Text()}), "title": f.Text(),
        "kind": f.ClassLabel(names=["owl", "hour glass"]),
    })  # fmt: skip
    examples = [
        {
            "photo": {"view": encode(plain(n))},
            "notes": [{"body": f"note {n}"}, {"body": ""}],
            "title": f"title {n}",
            "kind": n % 2,
        }
        for n in range(10)
    ]
    directory = write_tfds(tmp_path / "there", "birds", features, {"train": examples})
    keys = {"image_key": "photo/view", "text_key": "notes/body,title", "label_key": "kind"}
    data = config("birds", path=str(directory), **keys)
    prepared = sources.prepare(data)
    assert prepared.splits == {"train": 9, "validation": 1} and prepared.class_names == [
        "owl",
        "hour glass",
    ]
    example = prepared.open("train")[3]
    value = int(example["image"].mean())
    assert example["texts"] == (f"note {value}", f"title {value}") and example["label"] == value % 2
    # Found by name below a data directory, too; without texts, the class name speaks.
    below = config("birds", path=str(tmp_path / "there"), image_key="photo/view", label_key="kind")
    assert {t for row in sources.prepare(below).open("train").captions() for t in row} == {
        "a photo of an owl", "a photo of an hour glass",
    }  # fmt: skip
    with pytest.raises(
        InputError, match="'notes/bodi' in data.text_key|data.text_key 'notes/bodi'"
    ):
        sources.prepare(config("birds", path=str(directory), **keys | {"text_key": "notes/bodi"}))
    with pytest.raises(InputError, match="no feature called image; set data.image_key"):
        sources.prepare(config("birds", path=str(directory)))
    bare = config("birds", path=str(directory), image_key="photo/view")
    with pytest.raises(InputError, match="has no text"):
        sources.prepare(bare).open("train").captions()


@pytest.mark.parametrize("count, held", [(1, 0), (2, 1), (4, 1), (15, 1), (16, 2)])
def test_the_last_tenth_of_train_is_held_out(
    config: Config, tmp_path: Path, count: int, held: int
) -> None:
    splits = {"train": [{"image": encode(plain(1))}] * count}
    directory = write_tfds(tmp_path, "birds", f.FeaturesDict({"image": f.Image()}), splits)
    found = sources.prepare(config("birds", path=str(directory))).splits
    assert found.get("validation", 0) == held and found["train"] == count - held


def test_what_is_not_prepared_says_how_to_prepare_it(config: Config, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="tfds build cifar10 --file_format=array_record"):
        sources.prepare(config("cifar10"))
    with pytest.raises(InputError, match="four IDX files"):
        sources.prepare(config("fashion_mnist", path=str(tmp_path)))
    directory = write_tfds(tmp_path, "birds", f.FeaturesDict({"image": f.Image()}),
                           {"train": [{"image": encode(plain(1))}]})  # fmt: skip
    info = directory / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(InputError, match="prepared as tfrecord, which needs TensorFlow"):
        sources.prepare(config("birds", path=str(directory)))


def test_fingerprint_tells_data_sets_apart(config: Config, tmp_path: Path) -> None:
    seen = set()
    for number, count in enumerate((5, 5, 6)):
        splits = {"train": [{"image": encode(plain(1))}] * count}
        features = f.FeaturesDict({"image": f.Image()})
        directory = write_tfds(tmp_path / str(number), "birds", features, splits)
        seen.add(sources.prepare(config("birds", path=str(directory))).fingerprint)
    assert len(seen) == 2


def test_shapes_are_built_at_the_size_that_suits_the_resolution(config: Config) -> None:
    assert config("shapes").resolution == config("shapes/tiny").resolution == 32
    assert config("shapes/128").resolution == 128
    prepared = sources.prepare(config("shapes/tiny"))
    assert {"train", "validation", "test", "test_unseen"} <= prepared.splits.keys()
    source = prepared.open("test_unseen")
    example = pickle.loads(pickle.dumps(source))[0]
    assert example["image"].shape == (32, 32, 3) and len(example["texts"]) == 1
    with pytest.raises(InputError, match="Unknown size of the shapes world 'tinny'.*'tiny'"):
        sources.prepare(config("shapes/tinny"))
    with pytest.raises(InputError, match="Unknown split.*'test_unsen'.*'test_unseen'"):
        prepared.open("test_unsen")


def test_captions_of_a_part_are_spread_over_the_split(config: Config) -> None:
    source = sources.prepare(config("shapes/tiny")).open("train")
    everything = source.captions()
    assert everything == [source[n]["texts"] for n in range(len(source))]
    assert source.captions(limit=64) == everything[::3]
    assert source.captions(limit=10_000) == everything


@pytest.mark.parametrize(
    ("noun", "expected"),
    [("apple", "an"), ("dog", "a"), ("hour glass", "an"), ("unicorn", "a"), ("umbrella", "an"),
     ("European rabbit", "a"), ("used car", "a"), ("usher", "an"), ("one-eyed cat", "a"),
     ("unicycle", "a"), ("unimproved road", "an"), ("uninvited guest", "an"), ("honeycomb", "a"),
     ("T-shirt", "a"), ("Ankle boot", "an")],
)  # fmt: skip
def test_article(noun: str, expected: str) -> None:
    assert presets.article(noun) == expected
