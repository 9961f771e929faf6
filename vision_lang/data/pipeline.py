"""A split -> batches of arrays. B global batch, L text length, R resolution.

  image uint8 [B, R, R, 3]    tokens int32 [B, L]    text_mask bool [B, L]    label int32 [B]
  latent_mean, latent_logvar float32 [B, S, S, C], in place of image where the source has latents
  labels float32 [B, C], where several are wanted: 1 for each class that the example has, else 0
  weight float32 [B]: 0 for a broken record or a padding row, else 1
  index int32 [B]: in training the position in the global batch, in evaluation in the split

A training batch is a pure function of (seed, step): example n of the endless stream is number
n mod N of the permutation of epoch n div N, and the draws of an example (which of its captions,
crop, flip) come from a generator keyed by (seed, step, row). grain's workers only decide who
computes a batch, so resuming needs one integer. (The order is not left to grain's own shuffle,
whose elements cost 0.15 ms each: more than reading and decoding a small picture.)
"""

from __future__ import annotations

import dataclasses
import functools
import json
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import grain
import numpy as np
from absl import flags, logging
from ml_collections import ConfigDict

from vision_lang.data import augment
from vision_lang.data.prefetch import Prefetch
from vision_lang.data.reading import BadRecord, Source
from vision_lang.errors import InputError, choose, printable
from vision_lang.watching import watched

S = TypeVar("S")
T = TypeVar("T")
Batch = dict[str, np.ndarray]
Encode = Callable[[str], tuple[np.ndarray, np.ndarray]]  # text -> ids int32 [L], mask bool [L]

# Key under which a batch carries what is broken to the main process: JSON, [[name, reason], ...].
BAD = "bad"
SHARED_MEMORY_BYTES = 2**20  # arrays from here on reach the main process by shared memory
NAMES_SHOWN = 10  # in a message
ORDER_STREAM, EXAMPLE_STREAM = 0, 1  # second word of a generator's key, beside the seed


class ExampleError(RuntimeError):
    """An example could not be made for another reason than a broken picture; names the example."""


@dataclasses.dataclass(frozen=True)
class _MakeBatch:
    """step -> the rows of that batch which are this process's. Picklable.

    seed: None in evaluation: the split's own order, no draw, `index` is the example's own.
    classes: how many there are, where labels are wanted: an example without one of them is broken.
    multi_label: whether an example may have any number of them.
    """

    source: Source
    encode: Encode | None
    resolution: int
    crop: str
    flip: bool
    background: tuple[int, int, int]
    text_length: int
    seed: int | None
    batch_size: int
    rows: range
    classes: int
    multi_label: bool

    def __call__(self, step: int) -> dict[str, Any]:
        first = step * self.batch_size
        batch = self._blank(len(self.rows))
        bad = []
        for k, row in enumerate(self.rows):
            example_id = first + row
            if self.seed is not None:
                example_id = drawn(self.seed, example_id, len(self.source))
            batch["index"][k] = example_id if self.seed is None else row
            if example_id >= len(self.source):  # padding of the last evaluation batch
                batch["weight"][k] = 0
                continue
            try:
                self._fill(batch, k, example_id, step, row)
            except BadRecord as error:
                batch["weight"][k] = 0
                bad.append((error.name, error.reason))
            except InputError:
                raise
            except Exception as error:
                name = printable(_name(self.source, example_id))
                reason = f"{type(error).__name__}: {error}"
                raise ExampleError(f"Example '{name}' could not be read: {reason}") from error
        batch[BAD] = json.dumps(bad)
        return batch

    def _blank(self, size: int) -> dict[str, Any]:
        """Rows without content: black, the empty text, no label."""
        ids, mask = self._encode("")
        seen: dict[str, Any] = {
            "image": np.zeros((size, self.resolution, self.resolution, 3), np.uint8)
        }
        if self.source.latents:
            shape = (size, *self.source.latents[2:])
            seen = {name: np.zeros(shape, np.float32) for name in ("latent_mean", "latent_logvar")}
        if self.multi_label:
            seen["labels"] = np.zeros((size, self.classes), np.float32)
        return seen | {
            "tokens": np.tile(ids, (size, 1)),
            "text_mask": np.tile(mask, (size, 1)),
            "label": np.full(size, -1, np.int32),
            "weight": np.ones(size, np.float32),
            "index": np.zeros(size, np.int32),
        }

    def _fill(self, batch: dict[str, Any], k: int, example_id: int, step: int, row: int) -> None:
        example = self.source[example_id]
        texts = example["texts"]
        rng = None
        if self.seed is not None and (len(texts) > 1 or augment.draws(self.crop, self.flip)):
            rng = generator(self.seed, EXAMPLE_STREAM, step, row)
        if self.encode is not None:
            if not texts:
                raise InputError(
                    f"'{example['name']}' has no text. Name the field with data.text_key, add "
                    "texts to the data set, or train with condition=label."
                )
            chosen = 0 if rng is None else int(rng.integers(len(texts)))
            batch["tokens"][k], batch["text_mask"][k] = self.encode(texts[chosen])
        if self.source.latents:
            view = int(augment.mirrors(self.flip, rng))
            batch["latent_mean"][k], batch["latent_logvar"][k] = example["latents"][view]
        else:
            batch["image"][k] = augment.fit(
                example["image"], self.resolution, crop=self.crop, flip=self.flip,
                background=self.background, rng=rng,
            )  # fmt: skip
        batch["label"][k] = label = example["label"]
        labels = example["labels"] if self.multi_label else (label,)
        if self.classes and not all(0 <= known < self.classes for known in labels):
            raise BadRecord(example["name"], f"its label is none of the {self.classes} classes")
        if self.multi_label:
            batch["labels"][k, list(labels)] = 1

    def _encode(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        if self.encode is None:
            return np.zeros(self.text_length, np.int32), np.zeros(self.text_length, bool)
        return self.encode(text)


def generator(seed: int, stream: int, a: int, b: int) -> np.random.Generator:
    """Philox (Salmon et al. 2011) is counter-based: key and counter are the whole state."""
    key = np.array([seed % 2**64, stream], np.uint64)
    counter = np.array([0, 0, a, b], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


@functools.lru_cache(maxsize=4)  # a batch touches two epochs at most; two splits may alternate
def permutation(seed: int, epoch: int, size: int) -> np.ndarray:
    """The order of the examples in one epoch: int64 [size]."""
    return generator(seed, ORDER_STREAM, epoch, 0).permutation(size)


def drawn(seed: int, n: int, size: int) -> int:
    """Which of the `size` examples is number n of the endless stream."""
    epoch, place = divmod(n, size)
    return int(permutation(seed, epoch, size)[place])


def train_names(source: Source, batch_size: int, seed: int, step: int) -> list[str]:
    """What the examples are called that optimizer step `step` (1, 2, ...) learns from, in the order
    of the global batch, whichever process reads them; arguments as in `train_batches`."""
    stream = range((step - 1) * batch_size, step * batch_size)
    return [_name(source, drawn(seed, n, len(source))) for n in stream]


class Batches(Iterator[Batch]):
    """Batches from grain, with the broken records taken out, named and counted.

    Attributes:
      bad: what was broken so far, name -> reason.
    """

    def __init__(self, batches: Iterator[dict[str, Any]], source: Source, max_bad_share: float):
        self.bad: dict[str, str] = {}
        self._batches, self._size, self._split = batches, len(source), source.split
        self._allowed = max_bad_share * len(source)
        self._share = max_bad_share

    def __next__(self) -> Batch:
        batch = next(self._batches)
        for name, reason in json.loads(batch.pop(BAD)):
            if name not in self.bad:
                said = printable(f"{name} ({reason})")
                logging.warning("Broken record, left out with weight 0: %s", said)
                self.bad[name] = reason
        if len(self.bad) > self._allowed:
            shown = printable(", ".join(list(self.bad)[:NAMES_SHOWN]))
            more = len(self.bad) - NAMES_SHOWN
            raise InputError(
                f"{len(self.bad)} broken records in the {self._size} of the split "
                f"'{self._split}', more than data.max_bad_share={self._share} allows: {shown}"
                f"{f' and {more} more' if more > 0 else ''}. Repair or remove them."
            )
        return batch

    def close(self) -> None:
        """Ends the workers."""
        if close := getattr(self._batches, "close", None):
            close()


def train_batches(
    source: Source,
    encode: Encode | None,
    *,
    data: ConfigDict,
    batch_size: int,
    seed: int,
    step: int = 0,
    classes: int = 0,
    multi_label: bool = False,
    workers: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Batches:
    """Endless training batches, beginning with that of `step`.

    Args:
      source: an opened split.
      encode: text -> (ids [L], mask [L]), picklable, such as
        `functools.partial(tokenizer.encode, length=L)`; None: text is not used (tokens all 0).
      data: `config.data`.
      batch_size: B, over all processes; each process gets its contiguous share of the rows.
      seed: of the order and of all draws.
      step: of the first batch.
      classes: of the data set, where each example must have one; an example without counts as
        broken. 0: labels may be missing.
      multi_label: an example may have any number of classes, and the batch has `labels`; of one of
        which nothing is said counts as broken.
      workers: processes that compute batches; 0 = a thread of this one.

    Raises (also later, from the iterator):
      InputError: too many broken records; an example without text where text is wanted.
      ExampleError: an example failed in another way.
    """
    rows = _rows(batch_size, process_index, process_count)
    make = _make(source, encode, data, seed, batch_size, rows, classes, multi_label)
    return _batches(make, range(step, sys.maxsize), data, workers)


def eval_batches(
    source: Source,
    encode: Encode | None,
    *,
    data: ConfigDict,
    batch_size: int,
    classes: int = 0,
    multi_label: bool = False,
    workers: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """Every example once, in the split's order, without any draw; arguments as in `train_batches`.

    The last batch is filled up with rows of weight 0, whose index continues past the end.
    """
    rows = _rows(batch_size, process_index, process_count)
    make = _make(source, encode, data, None, batch_size, rows, classes, multi_label)
    total = -(-len(source) // batch_size)
    return watched(_batches(make, range(total), data, workers), total)


def prefetch(iterator: Iterable[S], place: Callable[[S], T], depth: int = 2) -> Prefetch[T]:
    """`place(batch)` of each batch (a device put), computed ahead in a thread; see `Prefetch`."""
    return Prefetch(iterator, place, depth)


def _rows(batch_size: int, process_index: int, process_count: int) -> range:
    """The rows of the global batch that belong to a process: a contiguous, equal share."""
    if batch_size % process_count:
        raise InputError(
            f"batch_size={batch_size} cannot be shared equally among {process_count} processes."
        )
    local = batch_size // process_count
    return range(process_index * local, (process_index + 1) * local)


def _make(
    source: Source,
    encode: Encode | None,
    data: ConfigDict,
    seed: int | None,
    batch_size: int,
    rows: range,
    classes: int,
    multi_label: bool,
) -> _MakeBatch:
    choose(augment.CROPS, data.crop, "crop policy (data.crop)")
    background = tuple(data.background)
    return _MakeBatch(
        source=dataclasses.replace(source, background=background), encode=encode,
        resolution=data.resolution, crop=data.crop, flip=data.flip, background=background,
        text_length=data.text_length, seed=seed, batch_size=batch_size, rows=rows,
        classes=classes, multi_label=multi_label,
    )  # fmt: skip


def _batches(make: _MakeBatch, steps: range, data: ConfigDict, workers: int) -> Batches:
    # One thread that is a little ahead: more would take cores from XLA on a small machine.
    # Where decoding is the bottleneck, `workers` is the answer.
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
    dataset = grain.MapDataset.range(steps.start, steps.stop).map(make).to_iter_dataset(options)
    if workers:
        _allow_unparsed_flags()
        # Small arrays go through the queue: a block of shared memory each costs more.
        shared = grain.experimental.DatasetOptions(min_shm_size=SHARED_MEMORY_BYTES)
        dataset = grain.experimental.WithOptionsIterDataset(dataset, shared)
        dataset = dataset.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=workers), worker_init_fn=_begin_worker
        )
    return Batches(iter(dataset), make.source, data.max_bad_share)


def _begin_worker(index: int, count: int) -> None:
    """Ties a worker's life to that of the process which started it, and to nothing else.

    Ctrl-C and a cluster's SIGTERM reach the whole group of processes. The main one ends its step
    and saves, for which it may still wait for a batch. Where it is killed, nobody tells a worker.
    """
    del index, count
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, name="follow-parent", daemon=True).start()


def _allow_unparsed_flags() -> None:
    """Lets grain read its own absl flags in programs that never parse any (notebooks, tests)."""
    if not flags.FLAGS.is_parsed():
        for name in flags.FLAGS:
            if name.startswith("grain_"):
                flags.FLAGS[name].present = True


def _name(source: Source, index: int) -> str:
    """The example's name; its position where not even that can be read."""
    try:
        return source.name(index)
    except Exception:  # noqa: BLE001  (the first error is the one to report)
        return f"{source.split}[{index}]"
