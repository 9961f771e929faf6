"""A data set named in a config -> prepared splits with random access.

`prepare(config.data)` builds `shapes`, `folder` and `idx` data under `data.dir` where that has not
happened yet, or opens what TFDS has prepared as array_record. Reading needs no TensorFlow: records
come through TFDS's `as_data_source`, their fields from the tf.train.Example message, pictures
through PIL.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from etils import epath
from ml_collections import ConfigDict
from tensorflow_datasets.core.decode import DeserializeMethod

from vision_lang.data import presets
from vision_lang.data.builders import copies, latents
from vision_lang.data.builders.folder_index import split_of
from vision_lang.data.reading import CACHE_BYTES, Keys, Records, Source
from vision_lang.errors import InputError, choose

SPLIT_NAMES = {"val": "validation", "valid": "validation", "dev": "validation"}
NAME_KEYS = ("file_name", "image/filename", "filename", "id")
SHAPES_SIZES = (32, 64, 128)  # px, the builder configs of the shapes world


@dataclasses.dataclass
class Prepared:
    """A data set that is ready to read.

    fingerprint: changes when the data change; for `folder` and `idx` it is that of the source. With
      latents it has theirs behind a +.
    splits: name -> number of examples, whether they fit `data.where` or not.
    class_names: names by label, or None.
    """

    name: str
    fingerprint: str
    splits: dict[str, int]
    class_names: list[str] | None
    directory: epath.Path
    _builder: Any
    _expressions: dict[str, str]
    _rows: dict[str, np.ndarray]  # split -> its places in what the expression names; {} = all
    _keys: Keys
    _label_ids: dict[str, int] | None
    _preset: presets.Preset
    _background: tuple[int, int, int]
    _where: tuple[str, str] | None
    _latents: Any = None  # their TFDS builder

    def check(self, split: str) -> None:
        """Raises InputError where there is no such split; the message lists those there are."""
        choose(self.splits, split, f"split of the data set '{self.name}'")

    def open(self, split: str) -> Source:
        """Opens one split.

        Raises:
          InputError: see `check`; or no example of the split fits `data.where`.
        """
        source = self.whole(split)
        return source if self._where is None else source.only(self._fitting(source))

    def whole(self, split: str) -> Source:
        """The same, whether examples fit `data.where` or not.

        Raises:
          InputError: see `check`.
        """
        self.check(split)
        expression = self._expressions[split]
        records = _raw_records(self._builder, expression)
        phrases = self._phrases()
        source = Source(split, records, self._keys, self._label_ids, phrases, self._background)
        return source.only(self._rows[split]) if self._rows else source

    def learned_from(self, split: str) -> Source:
        """What a loss is of: the same examples as `open`, with the latents of their pictures in
        place of these where there are some.

        Raises:
          InputError: see `open`.
        """
        if self._latents is None:
            return self.open(split)
        shape = self._latents.info.features["latents"].shape
        records = _raw_records(self._latents, split)
        source = Source(
            split, records, latents.KEYS, None, self._phrases(), self._background, latents=shape
        )
        return source if self._where is None else source.only(self._fitting(self.whole(split)))

    def with_latents(self, builder: Any, fingerprint: str) -> Prepared:
        """The data set with the latents of its pictures, which builders/latents.py prepared."""
        both = f"{self.fingerprint}+{fingerprint}"
        return dataclasses.replace(self, fingerprint=both, _latents=builder)

    def _phrases(self) -> tuple[str, ...]:
        return tuple(presets.phrase(name, self._preset) for name in self.class_names or [])

    def _fitting(self, source: Source) -> np.ndarray:
        """The places of the examples that fit `data.where`."""
        assert self._where is not None
        found = source.fitting(*self._where)
        if not len(found):
            raise InputError(
                f"No example in the split '{source.split}' of '{self.name}' fits data.where="
                f"{'='.join(self._where)}."
            )
        return found


def prepare(data: ConfigDict) -> Prepared:
    """Makes sure that the data set of `config.data` is prepared, and opens it.

    Raises:
      InputError: the data cannot be found or read; the message says how to get them.
    """
    preset = presets.get(data.name)
    builder, fingerprint, own = _find_builder(data, preset)
    if own:  # our builders write the splits under our names, whatever a preset says of TFDS's
        preset = dataclasses.replace(preset, splits=None)
    expressions = _split_expressions(builder.info.splits, preset)
    keys = _find_keys(builder, data, preset)
    class_names, label_ids = _classes(builder, keys)
    counts = {name: int(builder.info.splits[e].num_examples) for name, e in expressions.items()}
    rows = {}
    if preset.by_label:
        rows = _rows_by_label(builder, keys, class_names or [], label_ids)
        expressions = dict.fromkeys(rows, "+".join(builder.info.splits))
        counts = {name: len(places) for name, places in rows.items()}
    if not any(counts.values()):
        raise InputError(f"The data set at {builder.data_path} has no examples.")
    fingerprint = fingerprint or _fingerprint(builder)
    logging.info(
        "Data set %s at %s, fingerprint %s: %s", data.name, builder.data_path, fingerprint,
        ", ".join(f"{name} {counts[name]} ({text})" for name, text in expressions.items()),
    )  # fmt: skip
    return Prepared(
        name=data.name,
        fingerprint=fingerprint,
        splits={name: count for name, count in counts.items() if count},
        class_names=class_names,
        directory=epath.Path(builder.data_path),
        _builder=builder,
        _expressions={name: text for name, text in expressions.items() if counts[name]},
        _rows=rows,
        _keys=keys,
        _label_ids=label_ids,
        _preset=preset,
        _background=tuple(data.background),
        _where=_where(builder, data),
    )


def _find_builder(data: ConfigDict, preset: presets.Preset) -> tuple[Any, str, bool]:
    """The TFDS builder, the source's fingerprint ('' = take the builder's), is it one of ours?"""
    name = data.name.split("/")[0]
    if presets.is_shapes(data.name):
        return _shapes(data), "", True
    if name == "folder":
        from vision_lang.data.builders import folder

        return *folder.prepare(data.path, data.dir), True
    from vision_lang.data.builders import idx

    if name == "idx" or (data.path and idx.is_idx_folder(data.path)):
        class_names = presets.FASHION_CLASSES if name == "fashion_mnist" else None
        return *idx.prepare(data.path, data.dir, class_names), True
    return _open_tfds(data, preset), "", False


def _shapes(data: ConfigDict) -> Any:
    """Builds the shapes world at the drawn size that suits the resolution, once."""
    from vision_lang.data.builders.shapes import Shapes

    _, _, config = data.name.partition("/")
    if not config:
        config = str(next((s for s in SHAPES_SIZES if s >= data.resolution), SHAPES_SIZES[-1]))
    choose(Shapes.builder_configs, config, "size of the shapes world")
    with copies.described(epath.Path(data.dir) / Shapes.name / config):
        builder = Shapes(config=config, data_dir=data.dir, file_format="array_record")
    copies.once(data.dir, builder.data_path, builder.download_and_prepare)
    return builder


def _open_tfds(data: ConfigDict, preset: presets.Preset) -> Any:
    """Opens a data set that TFDS has prepared: at data.path, or under data.dir by its name."""
    wanted = preset.tfds or data.name
    places = [data.path] if data.path else [data.dir, "~/tensorflow_datasets"]
    builder = None
    for place in map(epath.Path, places):
        place = place.expanduser()
        if (place / "dataset_info.json").exists():
            builder = copies.opened(place)
        elif place.is_dir():
            builder = _search(place, wanted)
        if builder is not None:
            break
    how = (
        "To prepare it, in a separate environment: pip install tensorflow tensorflow-datasets; "
        f"tfds build {wanted} --file_format=array_record --data_dir=DIR; then here "
        "--config.data.dir=DIR."
    )
    if wanted == "fashion_mnist":
        how += " Or point --config.data.path to a folder with its four IDX files."
    if builder is None:
        known = ", ".join(sorted(presets.PRESETS))
        raise InputError(
            f"The data set '{data.name}' is not prepared in {' or '.join(map(str, places))}. {how} "
            f"Names that need no TFDS: shapes, folder, idx; with a preset: {known}."
        )
    formats = {file_format.value for file_format in builder.info.available_file_formats()}
    if "array_record" not in formats:
        raise InputError(
            f"{builder.data_path} is prepared as {', '.join(sorted(formats))}, which needs "
            f"TensorFlow to read. {how}"
        )
    return builder


def _search(place: epath.Path, wanted: str) -> Any:
    """The builder of a prepared data set under a TFDS data_dir, or None."""
    with copies.described(place / wanted):
        try:
            return tfds.core.read_only_builder.builder_from_files(wanted, data_dir=str(place))
        except (tfds.core.registered.DatasetNotFoundError, ValueError):
            return None


def _split_expressions(stored: Mapping[str, Any], preset: presets.Preset) -> dict[str, str]:
    """Our split names -> TFDS split expressions, see `presets.Preset`; stored: TFDS's splits."""
    if preset.splits is not None:
        present = {
            name: "+".join(part for part in text.split("+") if part.split("[")[0] in stored)
            for name, text in preset.splits.items()
        }
        return {name: text for name, text in present.items() if text}
    found = {SPLIT_NAMES.get(name, name): name for name in stored}
    if "train" in found and "validation" not in found:
        count = int(stored["train"].num_examples)
        if count > 1:
            held = max(1, count - round(0.9 * count))
            found.update(train=f"train[:-{held}]", validation=f"train[-{held}:]")
    return found


def _rows_by_label(
    builder: Any, keys: Keys, class_names: Sequence[str], label_ids: dict[str, int] | None
) -> dict[str, np.ndarray]:
    """Split -> places of its examples among all: a class is in one split, by a hash of its name."""
    everything = _raw_records(builder, "+".join(builder.info.splits))
    labels = Source("all", everything, keys, label_ids, (), (0, 0, 0)).labels()
    of_class = np.array([split_of(name) for name in class_names])
    known = np.flatnonzero(labels >= 0)
    own = of_class[labels[known]]
    return {name: known[own == name] for name in ("train", "validation", "test")}


def _where(builder: Any, data: ConfigDict) -> tuple[str, str] | None:
    """data.where as (key, value)."""
    if not data.where:
        return None
    key, equals, value = data.where.partition("=")
    if not equals:
        raise InputError(f"data.where={data.where} is no 'feature=value', as in scene/count=1.")
    known = list(_flat_keys(builder.info.features.get_serialized_info()))
    return choose(dict(zip(known, known, strict=True)), key, "feature in data.where"), value


def _find_keys(builder: Any, data: ConfigDict, preset: presets.Preset) -> Keys:
    """The keys to read: from the config, else the preset, else by their usual names."""
    known = {key: key for key in _flat_keys(builder.info.features.get_serialized_info())}

    def find(key: str, field: str, usual: Sequence[str]) -> str:
        if not key:
            return next((name for name in usual if name in known), "")
        return choose(known, key, f"feature of the data set '{data.name}' in data.{field}")

    image = find(data.image_key or preset.image, "image_key", ("image", "jpg", "png"))
    if not image:
        raise InputError(
            f"The data set '{data.name}' has no feature called image; set data.image_key to one "
            f"of {', '.join(sorted(known))}."
        )
    usual = ("text", "caption", "captions", "captions/text")
    texts = [part.strip() for part in (data.text_key or preset.text).split(",")]
    return Keys(
        image=image,
        label=find(data.label_key or preset.label, "label_key", ("label",)),
        texts=tuple(key for key in (find(text, "text_key", usual) for text in texts) if key),
        name=next((key for key in NAME_KEYS if key in known), ""),
    )


def _flat_keys(spec: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The keys of a stored record: nested names joined by a slash."""
    for name, value in spec.items():
        if isinstance(value, Mapping):
            yield from _flat_keys(value, f"{prefix}{name}/")
        else:
            yield prefix + name


def _classes(builder: Any, keys: Keys) -> tuple[list[str] | None, dict[str, int] | None]:
    """(class names by label or None, text -> label where labels are stored as text or None)."""
    if not keys.label:
        return None, None
    feature = _feature(builder.info.features, keys.label)
    if isinstance(feature, tfds.features.ClassLabel):
        return presets.readable_class_names(feature.names), None
    if isinstance(feature, tfds.features.Text):
        everything = "+".join(builder.info.splits)
        source = Source("all", _raw_records(builder, everything), keys, None, (), (0, 0, 0))
        names = sorted(source.strings(keys.label))
        return names, {name: number for number, name in enumerate(names)}
    return None, None


def _feature(features: Any, key: str) -> Any:
    """The TFDS feature at a flat key, through dicts and sequences."""
    if isinstance(features, tfds.features.Sequence):
        features = features.feature
    if not isinstance(features, tfds.features.FeaturesDict):
        return features
    if key in features:  # COCO's 'image/filename' is one key, 'captions/text' two
        return _feature(features[key], "")
    first, _, rest = key.partition("/")
    return _feature(features[first], rest)


def _raw_records(builder: Any, split: str) -> Records:
    """Random access to the stored bytes of a split, a sub-split or a sum of them."""
    stored = builder.as_data_source(split=split, deserialize_method=DeserializeMethod.RAW_BYTES)
    files = {part.filename for part in builder.info.splits[split].file_instructions}
    with copies.described(builder.data_path):
        size = sum(epath.Path(file).stat().length for file in files)
    # A part of a large split would only take memory: a random order hardly ever hits it.
    budget = CACHE_BYTES if size <= CACHE_BYTES else 0
    return Records(stored.data_source, budget, str(builder.data_path))


def _fingerprint(builder: Any) -> str:
    """Name, version, features and the sizes of all shards, as a short hash."""
    info = builder.info
    sizes = {name: [*split.shard_lengths, split.num_bytes] for name, split in info.splits.items()}
    facts = json.dumps([info.full_name, str(info.features), sizes], sort_keys=True)
    return hashlib.sha256(facts.encode()).hexdigest()[:16]
