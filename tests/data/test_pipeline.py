"""Batches: what is in them, and that they are a function of (seed, step) and nothing else."""

from __future__ import annotations

import contextlib
import functools
import itertools
import pickle
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ml_collections import ConfigDict
from tensorflow_datasets import features as f

from tests.data.conftest import encode, write_tfds
from vision_lang import watching
from vision_lang.data import pipeline, reading, sources, tokenizer
from vision_lang.errors import InputError

Config = Callable[..., ConfigDict]
FEATURES = f.FeaturesDict(
    {"image": f.Image(), "text": f.Sequence(f.Text()), "label": f.ClassLabel(num_classes=100),
     "file_name": f.Text()}
)  # fmt: skip
N = 30  # examples
TOKENIZER = tokenizer.train([f"first {n} second" for n in range(N)], 400)
ENCODE = functools.partial(TOKENIZER.encode, length=12)


def picture(number: int) -> np.ndarray:
    """uint8 [6, 9, 3]: a grey that says the number, brighter to the right."""
    return np.tile((2 * number + np.arange(9)).astype(np.uint8)[None, :, None], (6, 1, 3))


def examples(broken: tuple[int, ...] = ()) -> list[dict[str, Any]]:
    return [
        {
            "image": b"\x89PNG broken" if n in broken else encode(picture(n)),
            "text": [f"first {n}", f"second {n}"],
            "label": n,
            "file_name": f"{n}.png",
        }
        for n in range(N)
    ]


def make(
    config: Config, directory: Path, broken: tuple[int, ...] = (), **changes: Any
) -> tuple[reading.Source, ConfigDict]:
    """A prepared split of N numbers, and its config."""
    splits = {"train": examples(broken), "validation": examples()[:1]}
    path = write_tfds(directory, "numbers", FEATURES, splits)
    wanted = {"resolution": 8, "text_length": 12, "crop": "resize"} | changes
    data = config("numbers", path=str(path), **wanted)
    return sources.prepare(data).open("train"), data


def take(
    source: reading.Source, data: ConfigDict, count: int, **options: Any
) -> list[pipeline.Batch]:
    options = {"batch_size": 4, "seed": 0} | options
    batches = pipeline.train_batches(source, ENCODE, data=data, **options)
    try:
        return list(itertools.islice(batches, count))
    finally:
        batches.close()


def assert_same(one: list[pipeline.Batch], two: list[pipeline.Batch]) -> None:
    assert len(one) == len(two)
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            assert a[key].dtype == b[key].dtype
            np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def test_a_batch_holds_the_picture_the_text_and_the_label(config: Config, tmp_path: Path) -> None:
    source, data = make(config, tmp_path)
    for step, batch in enumerate(take(source, data, 20)):
        shapes = {key: (value.dtype.name, value.shape) for key, value in batch.items()}
        assert shapes == {
            "image": ("uint8", (4, 8, 8, 3)), "tokens": ("int32", (4, 12)),
            "text_mask": ("bool", (4, 12)), "label": ("int32", (4,)),
            "weight": ("float32", (4,)), "index": ("int32", (4,)),
        }, step  # fmt: skip
        assert batch["index"].tolist() == [0, 1, 2, 3] and batch["weight"].tolist() == [1] * 4
        for row in range(4):
            number = int(batch["label"][row])
            # The centred 6 x 6 square has the columns 1.5 .. 7.5.
            assert abs(batch["image"][row].mean() - (2 * number + 4)) < 0.6
            assert TOKENIZER.decode(batch["tokens"][row]) in (f"first {number}", f"second {number}")
            assert batch["text_mask"][row].sum() > 2


def test_each_epoch_holds_every_example_once_in_another_order(
    config: Config, tmp_path: Path
) -> None:
    source, data = make(config, tmp_path)
    batches = take(source, data, 3 * N // 5, batch_size=5)
    order = np.concatenate([batch["label"] for batch in batches]).reshape(3, N)
    for epoch in order:
        assert sorted(epoch) == list(range(N)) and list(epoch) != list(range(N))
    assert len({tuple(epoch) for epoch in order}) == 3
    other = np.concatenate(
        [batch["label"] for batch in take(source, data, N // 5, batch_size=5, seed=1)]
    )
    assert sorted(other) == list(range(N)) and other.tolist() != order[0].tolist()


def test_a_batch_larger_than_the_data_set_is_full(config: Config, tmp_path: Path) -> None:
    source, data = make(config, tmp_path)
    (batch,) = take(source, data, 1, batch_size=2 * N + 1)
    assert sorted(batch["label"][: 2 * N]) == sorted([*range(N), *range(N)])


def test_batches_do_not_depend_on_workers_or_where_one_began(
    config: Config, tmp_path: Path
) -> None:
    source, data = make(config, tmp_path, crop="random_resized_crop", flip=True)
    whole = take(source, data, 12)
    assert_same(take(source, data, 5, step=7), whole[7:])
    assert_same(take(source, data, 10, workers=2, step=2), whole[2:])
    assert_same(take(source, data, 3, workers=1, step=9), whole[9:])
    differ = [not np.array_equal(a["image"], b["image"])
              for a, b in zip(whole, take(source, data, 12, seed=1), strict=True)]  # fmt: skip
    assert all(differ)


def test_processes_share_the_rows_of_the_same_batches(config: Config, tmp_path: Path) -> None:
    source, data = make(config, tmp_path, crop="random_resized_crop", flip=True)
    whole = take(source, data, 9, batch_size=6)
    for count in (2, 3):
        parts = [take(source, data, 9, batch_size=6, process_index=p, process_count=count)
                 for p in range(count)]  # fmt: skip
        joined = [{key: np.concatenate([part[key] for part in step]) for key in step[0]}
                  for step in zip(*parts, strict=True)]  # fmt: skip
        assert_same(joined, whole)
    with pytest.raises(InputError, match="batch_size=6 cannot be shared equally among 4"):
        take(source, data, 1, batch_size=6, process_count=4)


def test_draws_differ_between_rows_steps_and_epochs(config: Config, tmp_path: Path) -> None:
    source, data = make(config, tmp_path, crop="random_resized_crop", flip=True)
    seen: dict[int, list[bytes]] = {n: [] for n in range(N)}
    captions: dict[int, list[str]] = {n: [] for n in range(N)}
    mirrored = 0
    for batch in take(source, data, 8 * N // 4):
        for image, number, tokens in zip(
            batch["image"], batch["label"], batch["tokens"], strict=True
        ):
            seen[int(number)].append(image.tobytes())
            captions[int(number)].append(TOKENIZER.decode(tokens).split()[0])
            mirrored += int(image[0, 0, 0]) > int(image[0, -1, 0])
    assert all(len(views) == 8 for views in seen.values())
    assert sum(len(set(views)) for views in seen.values()) > 6 * N
    first = sum(words.count("first") for words in captions.values())
    assert 0.35 < first / (8 * N) < 0.65  # 240 fair draws: a deviation of 0.032
    assert 0.35 < mirrored / (8 * N) < 0.65


def test_evaluation_counts_every_example_once_and_draws_nothing(
    config: Config, tmp_path: Path
) -> None:
    source, data = make(config, tmp_path, crop="random_resized_crop", flip=True)

    def run(**options: Any) -> dict[int, tuple[bytes, str]]:
        found = {}
        batches = list(pipeline.eval_batches(source, ENCODE, data=data, **options))
        index = np.concatenate([batch["index"] for batch in batches])
        assert index.tolist() == list(range(len(index)))
        weight = np.concatenate([batch["weight"] for batch in batches])
        assert (
            weight.sum() == N
            and (weight[:N] == 1).all()
            and len(weight) - N < options["batch_size"]
        )
        for batch in batches:
            for row in np.flatnonzero(batch["weight"]):
                found[int(batch["label"][row])] = (
                    batch["image"][row].tobytes(), TOKENIZER.decode(batch["tokens"][row])
                )  # fmt: skip
        assert len(found) == N
        return found

    reference = run(batch_size=1)
    for number, (_, text) in reference.items():
        assert text == f"first {number}"
    assert run(batch_size=7) == run(batch_size=30) == run(batch_size=64) == reference
    assert run(batch_size=7, workers=1) == reference
    rows = [b["index"].tolist() for p in (0, 1)
            for b in pipeline.eval_batches(source, ENCODE, data=data, batch_size=8,
                                           process_index=p, process_count=2)]  # fmt: skip
    assert sorted(itertools.chain(*rows)) == list(range(32))


def test_a_broken_record_keeps_its_slot_with_weight_zero(
    config: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good, data = make(config, tmp_path / "good", max_bad_share=0.1)
    bad, data = make(config, tmp_path / "bad", broken=(7, 21), max_bad_share=0.1)
    steps = 2 * N // 4
    reference = take(good, data, steps)
    batches = pipeline.train_batches(bad, ENCODE, data=data, batch_size=4, seed=0)
    zero = 0
    for expected in reference:
        batch = next(batches)
        for row in range(4):
            broken = expected["label"][row] in (7, 21)
            assert batch["weight"][row] == (0 if broken else 1)
            zero += broken
            if broken:  # finite for the model: an empty text, not an all-masked one
                assert batch["text_mask"][row].sum() == 2 and batch["label"][row] == -1
            else:
                for key in expected:
                    np.testing.assert_array_equal(batch[key][row], expected[key][row])
    assert zero == 4 and set(batches.bad) == {"7.png", "21.png"}
    assert caplog.text.count("Broken record") == 2


def test_any_name_of_a_broken_record_reaches_the_log_in_one_line(
    config: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    features = f.FeaturesDict({"image": f.Image(), "file_name": f.Text()})
    names = ["a\tb\nc.png", "\x1b[2J\u2028.png"]
    examples = [{"image": b"\x89PNG broken", "file_name": name} for name in names]
    path = write_tfds(tmp_path, "numbers", features, {"test": examples})
    data = config("numbers", path=str(path), resolution=8, max_bad_share=1.0)
    source = sources.prepare(data).open("test")
    batches = pipeline.eval_batches(source, None, data=data, batch_size=2)
    assert next(batches)["weight"].tolist() == [0, 0]
    said = sorted(message for message in caplog.messages if message.startswith("Broken record"))
    assert len(said) == 2 and all(message.isprintable() for message in said)
    assert r" \x1b[2J\u2028.png (" in said[0] and r" a\tb\nc.png (" in said[1]
    data = config("numbers", path=str(path), resolution=8, max_bad_share=0.0)
    with pytest.raises(InputError, match=r"a\\tb\\nc\.png") as caught:
        next(pipeline.eval_batches(source, None, data=data, batch_size=2))
    assert str(caught.value).isprintable()


def test_a_damaged_record_keeps_its_slot_with_weight_zero(
    config: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A disk that gives other bytes than were written, which checksums tell."""
    source, data = make(config, tmp_path, max_bad_share=0.1)
    reference = take(source, data, 2 * N // 4)
    (file,) = tmp_path.rglob("*train.array_record*")
    content = bytearray(file.read_bytes())
    content[content.index(b"first 7")] ^= 1
    file.write_bytes(content)
    source = sources.prepare(data).open("train")
    found = take(source, data, 2 * N // 4)
    bad = np.concatenate([batch["label"] for batch in reference]) == 7
    assert bad.sum() == 2
    np.testing.assert_array_equal(np.concatenate([b["weight"] for b in found]) == 0, bad)
    images = [np.concatenate([b["image"] for b in some])[~bad] for some in (found, reference)]
    np.testing.assert_array_equal(*images)
    (said,) = [message for message in caplog.messages if "Broken record" in message]
    assert re.search(r"train\[\d+\] \(The prepared data in '.*numbers/1\.0\.0' are damaged", said)
    with pytest.raises(InputError, match=r"prepared data in '.*numbers/1\.0\.0' are damaged"):
        source.captions()


def test_who_waits_for_an_evaluation_sees_its_batches(config: Config, tmp_path: Path) -> None:
    source, data = make(config, tmp_path)
    seen: list[tuple[int, int]] = []

    @contextlib.contextmanager
    def show(total: int) -> Iterator[Callable[[int], None]]:
        yield lambda done: seen.append((done, total))

    with watching.watcher(show):
        shown = list(pipeline.eval_batches(source, ENCODE, data=data, batch_size=8))
    assert seen == [(n, 4) for n in (1, 2, 3, 4)]
    assert_same(shown, list(pipeline.eval_batches(source, ENCODE, data=data, batch_size=8)))
    assert len(seen) == 4  # nobody looks on any more


def test_a_label_outside_the_classes_keeps_its_slot_with_weight_zero(
    config: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Label n of example n; the network has classes for all but the last two."""
    source, data = make(config, tmp_path, max_bad_share=0.1)
    batches = pipeline.eval_batches(source, ENCODE, data=data, batch_size=N, classes=N - 2)
    (batch,) = batches
    np.testing.assert_array_equal(batch["weight"], source.labels() < N - 2)
    assert {f"{N - 2}.png", f"{N - 1}.png"} == set(re.findall(r"\d+\.png", caplog.text))
    assert "none of the 28 classes" in caplog.text


@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_broken_records_stop_the_run_and_are_named(
    config: Config, tmp_path: Path, workers: int
) -> None:
    source, data = make(config, tmp_path, broken=(3, 4), max_bad_share=0.05)  # one of 30 is allowed
    with pytest.raises(
        InputError, match=r"2 broken records in the 30 .*max_bad_share=0.05.*\.png, \d"
    ):
        take(source, data, N // 4 + 1, workers=workers)
    with pytest.raises(InputError, match="3.png, 4.png|4.png, 3.png"):
        list(pipeline.eval_batches(source, ENCODE, data=data, batch_size=8))


@pytest.mark.parametrize("workers", [0, 1])
def test_other_errors_reach_the_main_process_with_the_name(
    config: Config, tmp_path: Path, workers: int
) -> None:
    source, data = make(config, tmp_path)
    strict = functools.partial(TOKENIZER.encode, length=3, strict=True)
    with pytest.raises(InputError, match=r"The text '(first|second) \d+' has"):
        next(
            pipeline.train_batches(source, strict, data=data, batch_size=4, seed=0, workers=workers)
        )
    source = pickle.loads(pickle.dumps(source))  # nothing open, nothing in memory
    for file in tmp_path.rglob("*train.array_record*"):
        file.unlink()  # a disk that went away after the start
    with pytest.raises(pipeline.ExampleError, match=r"Example 'train\[\d+\]' could not be read"):
        take(source, data, 1, workers=workers)


def test_an_example_without_text_is_refused_only_where_text_is_wanted(
    config: Config, tmp_path: Path
) -> None:
    features = f.FeaturesDict({"image": f.Image(), "file_name": f.Text()})
    examples = [{"image": encode(picture(1)), "file_name": "one.png"}]
    path = write_tfds(tmp_path, "numbers", features, {"test": examples})
    data = config("numbers", path=str(path), resolution=8)
    source = sources.prepare(data).open("test")
    with pytest.raises(InputError, match=r"'one.png' has no text.*data.text_key"):
        next(pipeline.eval_batches(source, ENCODE, data=data, batch_size=1))
    batch = next(pipeline.eval_batches(source, None, data=data, batch_size=1))
    assert batch["tokens"].shape == (1, data.text_length) and not batch["text_mask"].any()


def test_memory_for_records_is_bounded_and_changes_nothing() -> None:
    class Stored(list[bytes]):
        reads = 0

        def __getitem__(self, index: Any) -> Any:
            self.reads += 1
            return super().__getitem__(index)

        def __getitems__(self, indices: list[int]) -> list[bytes]:
            return [self[i] for i in indices]

    stored = Stored(bytes([n]) * 10 for n in range(10))
    records = reading.Records(stored, budget=35)
    for _ in range(3):
        assert [records[n] for n in range(10)] == list(stored)
        assert records.many([9, 0, 4]) == [stored[9], stored[0], stored[4]]
    stored.reads = 0
    assert [records[n] for n in (0, 1, 2)] == [b"\0" * 10, b"\1" * 10, b"\2" * 10]
    assert stored.reads == 0  # three of ten fit
    assert records[3] == b"\3" * 10 and stored.reads == 1


def test_neither_tensorflow_nor_torch_is_imported_and_flags_stay_unparsed(tmp_path: Path) -> None:
    code = """
import functools, sys
from ml_collections import ConfigDict
from vision_lang.data import pipeline, presets, sources, tokenizer

def main():
    data = ConfigDict(presets.fields("shapes/tiny"))
    data.dir = sys.argv[1]
    source = sources.prepare(data).open("train")
    texts = [text for texts in source.captions() for text in texts]
    words = tokenizer.for_captions(texts, path="", vocab_size=300, length=20)
    encode = functools.partial(words.encode, length=20)
    batches = pipeline.train_batches(source, encode, data=data, batch_size=8, seed=0, workers=1)
    assert next(batches)["image"].any()
    batches.close()
    from absl import flags
    assert not flags.FLAGS.is_parsed()
    print(sorted({"tensorflow", "torch", "flax"} & set(sys.modules)))

if __name__ == "__main__":
    main()
"""
    script = tmp_path / "program.py"
    script.write_text(code)
    root = Path(__file__).parents[2]
    command = [sys.executable, str(script), str(tmp_path / "data")]
    environment = {"PYTHONPATH": str(root), "PATH": ""}
    out = subprocess.run(command, cwd=root, env=environment, text=True, capture_output=True)
    assert out.returncode == 0, out.stderr
    assert out.stdout.splitlines()[-1] == "[]"
