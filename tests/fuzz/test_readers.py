"""What reads files that others made, on what nobody would write: only our own refusals come out.

Hypothesis draws the same examples each time; FUZZ=20 draws twenty times as many.
"""

from __future__ import annotations

import io
import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import save

from tests.data.conftest import encode, plain, write_folder
from vision_lang.data import images, tokenizer
from vision_lang.data.builders import folder_index
from vision_lang.data.builders.folder_files import Files
from vision_lang.errors import InputError
from vision_lang.pretrained import tensors, tokenizers

EFFORT = int(os.environ.get("FUZZ", "1"))


def fuzz(examples: int) -> Any:
    return settings(max_examples=EFFORT * examples, derandomize=True, deadline=None, database=None)


# JSON, also as no one writes it: infinities, halves of surrogate pairs, numbers of any length.
WORDS = st.sampled_from(
    ["file_name", "text", "label", "split", "group", "1.png", "../1.png", "train", "a/b", "a_b",
     "", " ", "\ud800", "\u2028", "a\nb"]
) | st.text(st.characters(), max_size=6)  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=6,
)
LINES = st.fixed_dictionaries(  # of the right types, nearly always
    {"file_name": st.just("1.png")},
    optional={
        "text": WORDS | st.lists(WORDS, max_size=3), "split": st.sampled_from(["train", "val", ""]),
        "label": WORDS | st.integers(-1, 9) | st.lists(WORDS, max_size=3),
        "group": VALUES, "a/b": VALUES, "a_b": VALUES, "other": VALUES,
    },
)  # fmt: skip


@st.composite
def spoilt(draw: st.DrawFn, content: bytes) -> bytes:
    """A few bytes changed, put in or taken out, or the end cut off."""
    found = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(0, len(found) - 1)))
        taken = draw(st.integers(0, 4))
        found[place : place + taken] = draw(st.binary(max_size=4))
    return bytes(found[: draw(st.integers(0, len(found)))] if draw(st.booleans()) else found)


@st.composite
def replaced(draw: st.DrawFn, tree: Any) -> Any:
    """One value anywhere in a tree of JSON replaced by another."""
    keys = list(tree) if isinstance(tree, dict) else range(len(tree))
    if not keys:
        return draw(VALUES)
    key = draw(st.sampled_from(keys))
    deeper = isinstance(tree[key], dict | list) and draw(st.booleans())
    new = draw(replaced(tree[key])) if deeper else draw(VALUES)
    if isinstance(tree, dict):
        return tree | {key: new}
    return [new if i == key else old for i, old in enumerate(tree)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("fuzz"), {"1.png": encode(plain(1))})


LINE = st.one_of(
    st.builds(json.dumps, LINES, ensure_ascii=st.booleans()),
    st.builds(json.dumps, LINES.flatmap(replaced)),
    st.builds(json.dumps, VALUES),
    st.text(max_size=20),
).map(lambda line: line.encode("utf-8", "replace").decode())  # as any line of a file is


@fuzz(150)
@given(line=LINE)
def test_a_line_of_metadata(folder: Path, line: str) -> None:
    try:
        record = folder_index._read_line(Files(str(folder)), "", line, "line 1", {})
    except InputError as error:
        assert "line 1" in str(error)
    else:
        for text in (record.path, *record.texts, *record.fields, *record.fields.values()):
            text.encode()
        assert record.broken or (record.path == "1.png" and record.split)
        assert all(str(label).strip() == str(label) for label in record.labels or ())


@fuzz(60)
@given(lines=st.lists(LINE, max_size=3), extra=st.binary(max_size=5), spoil=st.data())
def test_a_file_of_metadata(
    folder: Path, lines: list[str], extra: bytes, spoil: st.DataObject
) -> None:
    content = "\n".join(lines).encode() + extra
    (folder / "metadata.jsonl").write_bytes(spoil.draw(st.just(content) | spoilt(content)))
    try:
        index = folder_index.read_index(Files(str(folder)))
    except InputError as error:
        assert str(folder) in str(error)
    else:
        assert index.records and len(set(index.class_names)) == len(index.class_names)
        used = {(record.path, record.split) for record in index.records if not record.broken}
        assert len(used) <= 1  # there is one picture: it is in one split


def _tokenizers() -> Iterator[dict[str, Any]]:
    yield json.loads(tokenizer.train(["a dog", "a cat"], 262).json)
    specials = [["<pad>", 0.0], ["</s>", 0.0], ["<unk>", 0.0], ["\u2581a", -1.0]]
    yield {
        "added_tokens": [], "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always"},
        "model": {"type": "Unigram", "unk_id": 2, "vocab": specials}, "padding": None,
    }  # fmt: skip


TOKENIZERS = list(_tokenizers())


@fuzz(80)
@given(which=st.sampled_from(TOKENIZERS), spoil=st.data())
def test_a_tokenizer(folder: Path, which: dict[str, Any], spoil: st.DataObject) -> None:
    made = spoil.draw(st.one_of(
        replaced(which).map(lambda tree: json.dumps(tree).encode()),
        spoilt(json.dumps(which).encode()),
        VALUES.map(lambda tree: json.dumps(tree).encode()),
    ))  # fmt: skip
    (folder / "tokenizer.json").write_bytes(made)
    for read in (tokenizer.load, lambda path: tokenizer.Tokenizer(tokenizers.read(path))):
        try:
            found = read(folder)
            ids, mask = found.encode("A dog, \u2581 and 7 \ufffd\x00", 12)
            assert ids.shape == mask.shape == (12,) and ids.min() >= 0
            assert ids.max() < found.vocab_size <= tokenizer.LARGEST_VOCABULARY
            found.decode(ids)
        except InputError:
            continue


@fuzz(60)
@given(vocabulary=VALUES | st.dictionaries(WORDS, st.integers()), merges=st.binary(max_size=20),
       padding=VALUES)  # fmt: skip
def test_a_tokenizer_of_two_files(
    tmp_path_factory: pytest.TempPathFactory, vocabulary: Any, merges: bytes, padding: Any
) -> None:
    folder = tmp_path_factory.getbasetemp()
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_bytes(merges)
    (folder / "tokenizer_config.json").write_text(json.dumps({"pad_token": padding}))
    try:
        json.loads(tokenizers.read(folder))
    except InputError:
        pass


SAFETENSORS = save(
    {"w": np.ones((2, 3), np.float32), "v": np.zeros(4, np.float16)}, {"format": "pt"}
)
HEADER = json.loads(SAFETENSORS[8 : 8 + struct.unpack("<Q", SAFETENSORS[:8])[0]])


def _read_all(path: Path) -> None:
    try:
        found = tensors.open(path)
        assert all(value.dtype == np.float32 for _, value in tensors.float32(found, [*found]))
    except InputError as error:
        assert path.name in str(error)


@fuzz(100)
@given(spoil=st.data())
def test_safetensors(folder: Path, spoil: st.DataObject) -> None:
    header = spoil.draw(replaced(HEADER).map(lambda tree: json.dumps(tree).encode()))
    described = struct.pack("<Q", len(header)) + header + bytes(32)
    file = folder / "x.safetensors"
    file.write_bytes(spoil.draw(st.just(described) | spoilt(SAFETENSORS)))
    _read_all(file)


@fuzz(40)
@given(index=VALUES | st.dictionaries(st.just("weight_map"), VALUES))
def test_an_index_of_shards(folder: Path, index: Any) -> None:
    file = folder / "model.safetensors.index.json"
    file.write_text(json.dumps(index))
    _read_all(file)


def _hdf5() -> bytes:
    import h5py

    out = io.BytesIO()
    with h5py.File(out, "w") as file:
        file["layers/w"] = np.ones((2, 3), np.float32)
        file.create_dataset("v", data=np.ones(64, np.float32), chunks=(16,), compression="gzip")
    return out.getvalue()


HDF5 = _hdf5()


@fuzz(80)
@given(content=spoilt(HDF5))
def test_hdf5(folder: Path, content: bytes) -> None:
    (folder / "x.h5").write_bytes(content)
    _read_all(folder / "x.h5")


def _pictures() -> Iterator[bytes]:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8))
    for kind in images.FORMATS:
        yield encode(picture, kind)
    yield encode(picture.convert("P"), "PNG", transparency=3)
    yield encode(picture.convert("I;16"), "TIFF")
    yield encode(picture.convert("CMYK"), "TIFF", compression="tiff_lzw")
    yield encode(picture, "WEBP", save_all=True, append_images=[picture], lossless=True)


PICTURES = list(_pictures())


@fuzz(300)
@given(content=st.sampled_from(PICTURES).flatmap(spoilt) | st.binary(max_size=60))
def test_a_picture(content: bytes) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images, "LARGEST_PICTURE", 2**16)  # else the memory that some take is zeroed
        for read in (lambda: images.decode(content, (1, 2, 3)), lambda: images.normalise(content)):
            try:
                found = read()
            except images.BadImage as error:
                assert "\n" not in str(error)
            else:
                assert isinstance(found, bytes) or found.shape[2] == 3
