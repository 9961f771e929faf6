"""Random access to the examples of one prepared split.

Records come from TFDS's `as_data_source` as bytes; the few fields that are wanted are taken from
the tf.train.Example message directly (about 1 us, where TFDS's own NumPy decoding takes 150 us),
and pictures are decoded by PIL. No TensorFlow.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
from tensorflow_datasets.proto import tf_example_pb2

from vision_lang.data import images
from vision_lang.data.builders.copies import Damaged
from vision_lang.errors import InputError

READ_CHUNK = 256  # records read at once when only texts or labels are wanted
CACHE_BYTES = 256 * 2**20  # a split that is smaller on disk stays in a process's memory
# How array_record tells of bytes that are not what was written, which it knows by checksums. (It
# raises a RuntimeError then, as it does for a file that went away.)
DAMAGE = ("Riegeli", "should be at least 64KB")


class BadRecord(Exception):
    """An example that cannot be read, or whose picture cannot be decoded: `name` of the example,
    `reason`."""

    def __init__(self, name: str, reason: str):
        super().__init__(name, reason)
        self.name, self.reason = name, reason

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


class Records:
    """The stored bytes of each example, kept in memory once read, up to a budget in bytes.

    A random read costs 50 to 200 us even from the page cache, as much as decoding a small
    picture and encoding its caption.

    Args:
      stored: the data source.
      budget: bytes.
      place: where they lie, for messages.

    Raises (all methods):
      Damaged: what is stored is not what was written.
    """

    def __init__(self, stored: Any, budget: int, place: str = ""):
        self._stored, self._budget, self._place = stored, budget, place
        self._kept: dict[int, bytes] = {}
        self._room = budget

    def __len__(self) -> int:
        return len(self._stored)

    def __getitem__(self, index: int) -> bytes:
        record = self._kept.get(index)
        if record is None:
            with self._damage():
                record = self._keep(index, self._stored[index])
        return record

    def many(self, indices: list[int]) -> list[bytes]:
        """Several at once: faster where they are not in memory."""
        missing = [index for index in indices if index not in self._kept]
        with self._damage():
            read = self._stored.__getitems__(missing) if missing else ()
        found = zip(missing, read, strict=True)
        fresh = {index: self._keep(index, record) for index, record in found}
        return [fresh[index] if index in fresh else self._kept[index] for index in indices]

    def _keep(self, index: int, record: bytes) -> bytes:
        if len(record) <= self._room:
            self._kept[index] = record
            self._room -= len(record)
        return record

    @contextlib.contextmanager
    def _damage(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            if any(words in str(error) for words in DAMAGE):
                raise Damaged(self._place, error) from error
            raise

    def __getstate__(self) -> tuple[Any, int, str]:
        return self._stored, self._budget, self._place  # a worker fills its own memory

    def __setstate__(self, state: tuple[Any, int, str]) -> None:
        self.__init__(*state)  # type: ignore[misc]


@dataclasses.dataclass(frozen=True)
class Keys:
    """Where things stand in a record: flat keys of the tf.train.Example; '' or () = nowhere."""

    image: str
    label: str
    texts: tuple[str, ...]
    name: str


@dataclasses.dataclass
class Source:
    """Random access to one split; picklable, so that worker processes can open it themselves.

    `len(source)` examples; `source[i]` is a dict with image uint8 [H, W, 3] in its original size,
    texts (tuple of str, () where there is none), label (int, the first; -1 where there is none),
    labels (all of them, (-1,) where nothing is said of them), name.

    latents: of which shape they are kept in place of pictures, (K, 2, S, S, C), see
      builders/latents.py; `source[i]` then has latents, float32, not image. (): pictures are.
    """

    split: str
    records: Records
    keys: Keys
    label_ids: dict[str, int] | None  # for labels stored as text
    phrases: tuple[str, ...]  # per class, used where an example has no text of its own
    background: tuple[int, int, int]
    rows: np.ndarray | None = None  # the records that belong to the split, where not all do
    latents: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.records) if self.rows is None else len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Raises BadRecord where the record is damaged, or the picture cannot be decoded."""
        try:
            fields = self._fields(int(index))
        except Damaged as error:
            raise BadRecord(f"{self.split}[{index}]", str(error)) from error
        name = self._name(fields, int(index))
        seen = self._latents(fields, name) if self.latents else self._image(fields, name)
        labels = self._labels(fields)
        label = labels[0] if labels else -1
        texts = self._texts(fields, label)
        return seen | {"texts": texts, "label": label, "labels": labels, "name": name}

    def said(self, index: int) -> dict[str, Any]:
        """What stands beside the picture of example `index`: its own texts, labels, name."""
        fields = self._fields(int(index))
        name = self._name(fields, int(index))
        return {"texts": self._texts(fields, -1), "labels": self._labels(fields), "name": name}

    def captions(self, limit: int | None = None) -> list[tuple[str, ...]]:
        """The texts of each example, without decoding a picture.

        Args:
          limit: at most so many examples, evenly spaced over the split (large data sets must be
            read from end to end otherwise, pictures included).

        Raises:
          InputError: an example has no text.
        """
        found = []
        for index, fields in self._scan(limit):
            texts = self._texts(fields, self._label(fields))
            if not texts:
                raise InputError(
                    f"'{self._name(fields, index)}' in the split '{self.split}' has no text, and "
                    "no class name to make one from. Name the field with data.text_key, or add "
                    "texts to the data set; drawing by labels alone is condition=label."
                )
            found.append(texts)
        return found

    def labels(self) -> np.ndarray:
        """The label of every example, int32 [len(self)], -1 where there is none."""
        return np.array([self._label(fields) for _, fields in self._scan(None)], np.int32)

    def integers(self, key: str) -> np.ndarray:
        """A field that holds one whole number, of every example, int64 [len(self)].

        Raises:
          InputError: an example lacks it.
        """
        values = [fields[key].int64_list.value for _, fields in self._scan(None)]
        if not all(values):
            raise InputError(f"The examples of '{self.split}' have no whole number '{key}'.")
        return np.array([value[0] for value in values], np.int64)

    def strings(self, key: str) -> set[str]:
        """The distinct values of a field that holds text."""
        found = (v for _, fields in self._scan(None) for v in fields[key].bytes_list.value)
        return {value.decode("utf-8", "replace") for value in found}

    def name(self, index: int) -> str:
        """What to call example `index` in a message: its file name where it has one."""
        return self._name(self._fields(int(index)), int(index))

    def only(self, rows: np.ndarray) -> Source:
        """Only the examples at these places, int [n], in this order."""
        rows = np.asarray(rows, np.int64)
        return dataclasses.replace(self, rows=rows if self.rows is None else self.rows[rows])

    def fitting(self, key: str, value: str) -> np.ndarray:
        """Places of the examples whose field `key` begins with `value`, a number or a text."""
        found = [i for i, fields in self._scan(None) if _first(fields[key]) == value]
        return np.asarray(found, np.int64)

    def _image(self, fields: Any, name: str) -> dict[str, np.ndarray]:
        encoded = fields[self.keys.image].bytes_list.value
        if not encoded:
            raise BadRecord(name, "the record holds no picture")
        try:
            return {"image": images.decode(encoded[0], self.background)}
        except images.BadImage as error:
            raise BadRecord(name, str(error)) from error

    def _latents(self, fields: Any, name: str) -> dict[str, np.ndarray]:
        if fields["broken"].int64_list.value[0]:
            raise BadRecord(name, "its picture could not be read when latents were made")
        (kept,) = fields[self.keys.image].bytes_list.value
        return {"latents": np.frombuffer(kept, "<f4").reshape(self.latents)}

    def _fields(self, index: int) -> Any:
        return _parse(self.records[index if self.rows is None else int(self.rows[index])])

    def _scan(self, limit: int | None) -> Iterator[tuple[int, Any]]:
        count = len(self) if limit is None else min(limit, len(self))
        chosen = [i * len(self) // count for i in range(count)]
        for start in range(0, count, READ_CHUNK):
            chunk = chosen[start : start + READ_CHUNK]
            records = chunk if self.rows is None else self.rows[chunk].tolist()
            for index, record in zip(chunk, self.records.many(records), strict=True):
                yield index, _parse(record)

    def _texts(self, fields: Any, label: int) -> tuple[str, ...]:
        values = [value for key in self.keys.texts for value in fields[key].bytes_list.value]
        texts = tuple(
            text for text in (v.decode("utf-8", "replace").strip() for v in values) if text
        )
        if not texts and 0 <= label < len(self.phrases):
            return (self.phrases[label],)
        return texts

    def _label(self, fields: Any) -> int:
        labels = self._labels(fields)
        return labels[0] if labels else -1

    def _labels(self, fields: Any) -> tuple[int, ...]:
        if not self.keys.label:
            return (-1,)
        feature = fields[self.keys.label]
        if self.label_ids is not None:
            names = (value.decode("utf-8", "replace") for value in feature.bytes_list.value)
            return tuple(self.label_ids.get(name, -1) for name in names)
        return tuple(feature.int64_list.value)

    def _name(self, fields: Any, index: int) -> str:
        values = fields[self.keys.name].bytes_list.value if self.keys.name else ()
        return values[0].decode("utf-8", "replace") if values else f"{self.split}[{index}]"


def _parse(record: bytes) -> Any:
    """A stored record -> its map of key -> feature (a missing key reads as an empty feature)."""
    return tf_example_pb2.Example.FromString(record).features.feature


def _first(feature: Any) -> str:
    """The first value of a field that holds numbers or texts, as text; '' where it is empty."""
    if feature.bytes_list.value:
        return feature.bytes_list.value[0].decode("utf-8", "replace")
    return str(feature.int64_list.value[0]) if feature.int64_list.value else ""
