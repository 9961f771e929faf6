"""What is known about public data sets, and the fields of `config.data`.

A preset is a row of `PRESETS`: where the picture, label and text stand in the TFDS features,
which split means what, how pictures become square, and how a class name becomes a phrase.
`fields(name)` gives `config.data` for a data set, with every choice written out, so that a run's
config says what was done.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence

from vision_lang.errors import InputError

Splits = Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Preset:
    """One data set.

    image, label, text: keys in the TFDS features, nested ones as a/b; '' = found by name.
    A text key may name several fields, separated by commas; each may hold a list.
    splits: our name -> TFDS split expression; None = the data set's own names, and where there
      is no validation split, the last tenth of train (so too for `folder` and `idx`).
    by_label: instead, all that there is by its class: train, validation and test have different
      ones (80, 10 and 10 % of them, by a hash of the name).
    resolution, crop, flip, background: what `fields` writes into the config.
    template: phrase for a class: {a} its name with the article, {name} without.
    phrases: class name -> words, where the stored name does not read well.
    """

    image: str = ""
    label: str = ""
    text: str = ""
    splits: Splits | None = None
    by_label: bool = False
    resolution: int = 64
    crop: str = "resize"
    flip: bool = False
    background: tuple[int, int, int] = (255, 255, 255)
    template: str = "a photo of {a}"
    phrases: Mapping[str, str] = dataclasses.field(default_factory=dict)
    text_length: int = 32
    vocab_size: int = 1024
    tfds: str = ""  # the name to prepare it under, with the config; '' = the preset's own name


FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip

PRESETS: dict[str, Preset] = {
    "shapes": Preset(resolution=32, text_length=34, vocab_size=512),
    "folder": Preset(image="image", label="label", text="text"),
    "idx": Preset(
        image="image", label="label", resolution=32, crop="pad", background=(0, 0, 0)
    ),
    # ILSVRC's test labels are not public: its validation images are our test split.
    "imagenet2012": Preset(
        image="image", label="label", resolution=224, crop="random_resized_crop", flip=True,
        splits={"train": "train[:99%]", "validation": "train[99%:]", "test": "validation"},
    ),
    # Karpathy's split with restval in training (113,287 images), as captioning papers use it.
    "coco_captions": Preset(
        image="image", text="captions/text", resolution=64, vocab_size=8192,
        tfds="coco_captions/2014",
        splits={"train": "train+restval", "validation": "val", "test": "test"},
    ),
    "cifar10": Preset(
        image="image", label="label", resolution=32, flip=True,
        splits={"train": "train[:90%]", "validation": "train[90%:]", "test": "test"},
    ),
    # 28 px are centred on 32: no pixel is resampled.
    "fashion_mnist": Preset(
        image="image", label="label", resolution=32, crop="pad", background=(0, 0, 0),
        splits={"train": "train[:92%]", "validation": "train[92%:]", "test": "test"},
        phrases={"T-shirt/top": "T-shirt or top", "Trouser": "pair of trousers",
                 "Sandal": "sandal", "Ankle boot": "ankle boot"},
    ),
    "oxford_flowers102": Preset(
        image="image", label="label", resolution=64, flip=True,
        splits={"train": "train", "validation": "validation", "test": "test"},
        template="a photo of {a}, a type of flower",
    ),
    # TFDS has one split and stores it in hashed order. People occur in several of these parts.
    "lfw": Preset(
        image="image", label="label", resolution=64, template="a photo of {name}",
        splits={"train": "train[:80%]", "validation": "train[80%:90%]", "test": "train[90%:]"},
    ),
    # The same pictures for verification: nobody occurs in two parts.
    "lfw_people": Preset(
        image="image", label="label", resolution=64, template="a photo of {name}", flip=True,
        by_label=True, tfds="lfw",
    ),
}  # fmt: skip


def get(name: str) -> Preset:
    """The preset of a data set; any name without one gets the general rules."""
    return PRESETS.get(name.split("/")[0].split(":")[0], Preset())


def is_shapes(name: str) -> bool:
    """Whether a data set is the built-in world, of any size: 'shapes', 'shapes/64' (TFDS has a
    shapes3d, which is not)."""
    return name.partition("/")[0] == "shapes"


def _drawn(name: str) -> int:
    """The size, px, at which a config of the built-in world is drawn: 'shapes/64'; else 0."""
    config = name.partition("/")[2]
    return int(config) if is_shapes(name) and config.isdecimal() else 0


def fields(name: str) -> dict[str, object]:
    """`config.data` for a data set, all choices written out.

    name         'shapes' | 'folder' | 'idx' | a preset | any TFDS name, 'name/config' too
    path         the folder, zip or prepared directory; '' = look under dir
    dir          where prepared data sets live
    resolution   R, px: pictures become R x R
    crop         a policy of `augment.CROPS`; random ones draw only in training
    flip         mirror half of the training pictures; wrong for captions that say left or right
    background   RGB, 0..255: under transparency, and around padded pictures
    image_key, text_key, label_key   where they stand in the features; '' = the preset's
    where        'feature=value' keeps only the examples whose feature is that; '' = all
    text_length  L, tokens of a text, begin and end included
    tokenizer    '' = train one on the training captions; else a tokenizer.json
    vocab_size   the most tokens that training a tokenizer may make
    max_bad_share  share of a split's examples that may fail to decode before the run stops
    """
    preset = get(name)
    return {
        "name": name,
        "path": "",
        "dir": "data",
        "resolution": _drawn(name) or preset.resolution,
        "crop": preset.crop,
        "flip": preset.flip,
        "background": preset.background,
        "image_key": "",
        "text_key": "",
        "label_key": "",
        "where": "",
        "text_length": preset.text_length,
        "tokenizer": "",
        "vocab_size": preset.vocab_size,
        "max_bad_share": 0.01,
    }


def phrase(class_name: str, preset: Preset, template: str = "") -> str:
    """A class name as a text, as in "a photo of an ankle boot"; template: '' = the preset's."""
    name = preset.phrases.get(class_name, class_name)
    name = re.sub(r"[_\s]+", " ", name).strip()
    return fill(template or preset.template, name)


def fill(template: str, name: str) -> str:
    """A template with a name in its place: {} or {name}, or {a} with the article."""
    return template.format(name, a=f"{article(name)} {name}", name=name)


def check_template(template: str) -> None:
    """Raises InputError for a template that `fill` cannot fill, or that has no place for a name."""
    try:
        filled = {fill(template, name) for name in ("one", "two")}
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        filled = set()
    if len(filled) < 2:
        raise InputError(
            f"The template '{template}' has no place for what it is about, or another: write {{}} "
            "or {name}, or {a} for a name with its article."
        )


def article(noun: str) -> str:
    """ "an" before a vowel sound, judged by spelling; "a" before uni-, use-, eu-, one-."""
    word = noun.lower()
    if re.match(r"(hour|honest|heir|hono)", word):
        return "an"
    if re.match(r"(uni([^nm]|$)|us[aeiu]|eu|one|ewe|ufo)", word):
        return "a"
    return "an" if word[:1] in "aeiou" and word else "a"


def readable_class_names(names: Sequence[str]) -> list[str]:
    """Class names that people read: ImageNet's WordNet ids become their first English name."""
    if len(names) == 1000 and all(re.fullmatch(r"n\d{8}", name) for name in names):
        return list(_imagenet_names())
    return list(names)


@functools.cache
def _imagenet_names() -> tuple[str, ...]:
    """The 1,000 classes in the order of their WordNet ids, from the table that TFDS ships."""
    from tensorflow_datasets.datasets.siscore import labels

    return tuple(name.split(",")[0] for name in labels.IMAGENET_LABELS_LIST)
