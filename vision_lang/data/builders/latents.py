"""A data set once more, with an autoencoder's latents in place of its pictures, as array_record.

It lies at DIR/latents/<stem>-<fingerprint>/<version>, where TFDS can open it, too. The fingerprint
is of all that the latents are made of, so that those of another autoencoder, of other data or of
another resolution are never taken for them. Its metadata.json says what they were made of, and how
large they are. Examples stand in the order of the data set that they come from.

Shapes: S side of the latents, C their channels, K = 2 where pictures may be mirrored, else 1.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from vision_lang.data.builders import copies
from vision_lang.data.reading import Keys

VERSION = "1.0.0"
SHARD_BYTES = 2**28
KEYS = Keys(image="latents", label="label", texts=("text",), name="file_name")


def fingerprint_of(facts: Mapping[str, Any]) -> str:
    """A short hash of what latents are made of, JSON values by name."""
    text = json.dumps([VERSION, dict(facts)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def prepare(
    directory: str,
    stem: str,
    facts: Mapping[str, Any],
    shape: Sequence[int],
    splits: Callable[[], Iterable[tuple[str, Iterable[list[dict[str, Any]]]]]],
) -> Any:
    """Opens the latents that are made of `facts`, after making them where there are none.

    Args:
      directory: where prepared data sets live.
      stem: what they are called beside their fingerprint.
      facts: see `fingerprint_of`.
      shape: K, 2 (mean and log-variance), S, S, C.
      splits: gives (name, lists of its examples, in order); an example is {"latents": float32 of
        `shape`, or None where the picture could not be read, "texts": (str, ...), "labels": (int,
        ...), "name": str}. Called only where there is something to make.
    """
    name = f"{stem}-{fingerprint_of(facts)}"
    target = epath.Path(directory) / "latents" / name / VERSION

    def make() -> None:
        unfinished = target.with_name(f"{VERSION}.incomplete")
        if unfinished.exists():
            unfinished.rmtree()
        unfinished.mkdir(parents=True)
        _write(unfinished, name, facts, shape, splits())
        unfinished.rename(target)

    copies.once(directory, target, make)
    return copies.opened(target)


def _write(
    directory: epath.Path,
    name: str,
    facts: Mapping[str, Any],
    shape: Sequence[int],
    splits: Iterable[tuple[str, Iterable[list[dict[str, Any]]]]],
) -> None:
    # TFDS's own builders sort by key, for which all that is kept in order must fit into memory.
    text, number = tfds.features.Text(), tfds.features.Scalar(np.int64)
    encoding = tfds.features.Encoding.BYTES
    features = {
        "latents": tfds.features.Tensor(shape=shape, dtype=np.float32, encoding=encoding),
        "broken": number,  # 1: the picture could not be read
        "text": tfds.features.Sequence(text),
        "label": tfds.features.Sequence(number),
        "file_name": text,
    }
    info = tfds.core.DatasetInfo(
        builder=tfds.core.dataset_info.DatasetIdentity(
            name="latents", version=tfds.core.Version(VERSION), data_dir=str(directory),
            module_name=__name__, config_name=name,
        ),
        description="Means and log-variances of an autoencoder's latents.",
        features=tfds.features.FeaturesDict(features),
        metadata=tfds.core.MetadataDict(made_of=dict(facts)),
        disable_shuffling=True,
    )  # fmt: skip
    per_shard = max(1, SHARD_BYTES // (4 * math.prod(shape)))
    writer = tfds.core.SequentialWriter(info, per_shard, file_format="array_record")
    for split, lists in splits:
        writer.initialize_splits([split])
        statistics = Statistics(shape[-1])
        for examples in lists:
            writer.add_examples({split: [_stored(example, shape) for example in examples]})
            for example in examples:
                statistics.add(example["latents"])
        if split == "train":
            info.metadata["statistics"] = statistics.found()
        writer.close_splits([split])


def _stored(example: dict[str, Any], shape: Sequence[int]) -> dict[str, Any]:
    broken = example["latents"] is None
    return {
        "latents": np.zeros(shape, np.float32) if broken else example["latents"],
        "broken": int(broken),
        "text": list(example["texts"]),
        "label": list(example["labels"]),
        "file_name": example["name"],
    }


class Statistics:
    """Mean and deviation of latents that are drawn anew each time, in float64."""

    def __init__(self, channels: int):
        self._pictures = self._numbers = 0
        self._sum, self._squares = np.zeros(channels), np.zeros(channels)

    def add(self, latents: np.ndarray | None) -> None:
        """Counts a picture, [K, 2, S, S, C]; None: it could not be read."""
        if latents is None:
            return
        mean, logvar = np.moveaxis(latents.astype(np.float64), 1, 0)
        self._pictures += 1
        self._numbers += mean[..., 0].size
        self._sum += mean.sum((0, 1, 2))
        self._squares += (mean**2 + np.exp(logvar)).sum((0, 1, 2))

    def found(self) -> dict[str, Any]:
        """`count` of pictures, `mean` and `deviation` of each channel, and `scaling`: one over the
        deviation of all channels together (Rombach et al. 2022, section D.1)."""
        each, square = self._sum / self._numbers, self._squares / self._numbers
        return {
            "count": self._pictures,
            "mean": each.tolist(),
            "deviation": np.sqrt(square - each**2).tolist(),
            "scaling": float(1 / np.sqrt(square.mean() - each.mean() ** 2)),
        }
