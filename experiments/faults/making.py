"""Makes damaged, odd and hostile inputs, and reads them as a user's own would be: for inputs.py.

A `Run` makes its input in an empty folder and reads it.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from vision_lang.data import images, pipeline, presets, sources, tokenizer
from vision_lang.pretrained import tensors

Run = Callable[[Path], Any]

# A folder of pictures, as the data set 'folder' reads it. One good picture is always there.


def encoded(kind: str = "PNG", mode: str = "RGB", size: int = 8, **options: Any) -> bytes:
    out = io.BytesIO()
    Image.new(mode, (size, size)).save(out, kind, **options)
    return out.getvalue()


def read_data(path: Path, directory: Path) -> None:
    """Prepares and reads all of it."""
    data = ConfigDict(presets.fields("folder"))
    data.update(dir=str(directory / "prepared"), path=str(path))
    prepared = sources.prepare(data)
    for split in prepared.splits:
        source = prepared.open(split)
        for n in range(len(source)):
            assert source[n]["image"].shape[2] == 3


def write(folder: Path, files: dict[str, bytes], lines: list[Any]) -> Path:
    """Writes files and metadata.jsonl; a line of bytes or str is written as it is."""
    path = folder / "pictures"
    for name, content in ({"good.png": encoded()} | files).items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    texts = [line if isinstance(line, bytes) else as_json(line).encode() for line in lines]
    if texts:
        (path / "metadata.jsonl").write_bytes(b"\n".join(texts))
    return path


def as_json(line: Any) -> str:
    return line if isinstance(line, str) else json.dumps(line)


def line(name: str = "good.png", **more: Any) -> dict[str, Any]:
    return {"file_name": name, "text": "a dog", "split": "train", **more}


def picture(content: bytes, name: str = "bad.png") -> Run:
    """A picture beside a good one."""
    return lambda folder: read_data(write(folder, {name: content}, [line(), line(name)]), folder)


def metadata(*lines: Any) -> Run:
    """Lines of metadata behind a good one; two.png and three.png are there if a line names them."""
    files = {name: encoded() for name in ("two.png", "three.png") if name in str(lines)}
    return lambda folder: read_data(write(folder, files, [line(), *lines]), folder)


def folder_with(make: Callable[[Path], object], *lines: Any) -> Run:
    """What `make` does to the folder, before it is read."""

    def run(folder: Path) -> None:
        path = write(folder, {}, list(lines))
        make(path)
        read_data(path, folder)

    return run


def archive(
    make: Callable[[zipfile.ZipFile], object], spoil: Callable[[bytes], bytes] = bytes
) -> Run:
    """A zip with a good picture and what `make` adds; then `spoil` changes its bytes."""

    def run(folder: Path) -> None:
        with zipfile.ZipFile(folder / "pictures.zip", "w", zipfile.ZIP_DEFLATED) as zipped:
            zipped.writestr("good.png", encoded())
            make(zipped)
        (folder / "pictures.zip").write_bytes(spoil((folder / "pictures.zip").read_bytes()))
        read_data(folder / "pictures.zip", folder)

    return run


def member(name: str, content: bytes = b"") -> Callable[[zipfile.ZipFile], object]:
    return lambda zipped: zipped.writestr(name, content or encoded())


def linked(zipped: zipfile.ZipFile) -> None:
    info = zipfile.ZipInfo("link.png")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    zipped.writestr(info, "good.png")


def header(place: int, content: bytes) -> Callable[[bytes], bytes]:
    """Writes over the last entry of a zip's table of contents, from byte `place` of it on."""

    def spoil(whole: bytes) -> bytes:
        start = whole.rindex(b"PK\x01\x02") + place
        return whole[:start] + content + whole[start + len(content) :]

    return spoil


def flip(what: bytes, behind: int) -> Callable[[bytes], bytes]:
    """Flips the bits of a byte, so many bytes behind the beginning of `what`."""

    def spoil(whole: bytes) -> bytes:
        place = whole.index(what) + behind
        return whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :]

    return spoil


def huge(name: str) -> Callable[[Path], object]:
    """A file of a gigabyte that takes no room on the disk."""
    return lambda path: os.truncate(_new(path / name), 2**30)


def _new(path: Path) -> Path:
    path.touch()
    return path


def changing(folder: Path) -> None:
    """A picture is written anew while the others are read."""
    path = write(folder, {"late.png": encoded()}, [line(), line("late.png")])
    normalise = images.normalise

    def meanwhile(content: bytes) -> bytes:
        (path / "late.png").write_bytes(encoded(size=32))
        return normalise(content)

    with mock.patch.object(images, "normalise", meanwhile):
        read_data(path, folder)


# Files of pictures that announce more than they hold.


def png(width: int, height: int, *chunks: bytes) -> bytes:
    """A grey PNG that announces its size and holds hardly any of it."""
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = [chunk(b"IHDR", head), *chunks, chunk(b"IDAT", zlib.compress(b"\0" * 9))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + chunk(b"IEND", b"")


def chunk(kind: bytes, content: bytes) -> bytes:
    return (
        struct.pack(">I", len(content)) + kind + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )  # fmt: skip


def tiff(size: int) -> bytes:
    """A grey TIFF of that width and height, whose only strip is empty."""
    tags = {256: size, 257: size, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: size, 279: 0}
    rows = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + rows + bytes(4)


def gif_of_two() -> bytes:
    """A small first frame, and a second of 65,535 x 65,535 pixels."""
    second = b"\x2c" + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0) + b"\x02\x01\x04\x00"
    return encoded("GIF", "P").removesuffix(b";") + second + b";"


# A copy that was prepared before, and is damaged since.


def copy(spoil: Callable[[Path], object]) -> Run:
    """Pictures are prepared, `spoil` damages the copy, and batches are made of it."""

    def run(folder: Path) -> None:
        noise = np.random.default_rng(0).integers(0, 256, (9, 64, 64, 3), np.uint8)
        files = {f"{n}.png": _png(pixels) for n, pixels in enumerate(noise)}
        path = write(folder, files, [line(), *map(line, files)])
        data = ConfigDict(presets.fields("folder"))
        data.update(dir=str(folder / "prepared"), path=str(path), max_bad_share=0.2, resolution=8)
        spoil(Path(sources.prepare(data).directory))
        source = sources.prepare(data).open("train")
        batches = pipeline.train_batches(source, None, data=data, batch_size=len(source), seed=0)
        for _ in itertools.islice(batches, 2):
            pass

    return run


def _png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG", compress_level=0)
    return out.getvalue()


def file_in_copy(pattern: str, change: Callable[[bytes], bytes] | None) -> Callable[[Path], object]:
    """Changes one file of a copy, or takes it away."""

    def spoil(directory: Path) -> None:
        (file,) = directory.glob(pattern)
        if change is None:
            file.unlink()
        else:
            file.write_bytes(change(file.read_bytes()))

    return spoil


def in_new_folder(folder: Path) -> None:
    folder.mkdir()
    (folder / "two.png").write_bytes(encoded())


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


# Weights and tokenizers.


def weights(name: str, content: bytes) -> Run:
    def run(folder: Path) -> None:
        (folder / name).write_bytes(content)
        read_weights(folder / name)

    return run


def read_weights(path: Path) -> None:
    found = tensors.open(path)
    for name in found:
        assert found[name].shape == found.shape(name)


def stored(size: int | None = None, **described: Any) -> bytes:
    """A safetensors file of zeros that says of itself what it is told to."""
    text = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}} | described)
    return struct.pack("<Q", len(text) if size is None else size) + text.encode() + bytes(8)


def shards(shard: Any) -> Run:
    """An index that names a shard; a file of weights lies beside its folder."""

    def run(folder: Path) -> None:
        (folder / "model").mkdir()
        (folder / "x.safetensors").write_bytes(stored())
        index = folder / "model" / "model.safetensors.index.json"
        index.write_text(json.dumps({"weight_map": {"w": shard}}).replace("FOLDER", str(folder)))
        read_weights(index)

    return run


def hdf5(make: Callable[[Any, Path], object]) -> Run:
    """A file of Keras's in which `make` puts something; other.h5 lies beside it."""

    def run(folder: Path) -> None:
        import h5py

        for name in ("other.h5", "model.h5"):
            with h5py.File(folder / name, "w") as file:
                file["w"] = np.ones(2, np.float32)
                if name == "model.h5":
                    make(file, folder)
        read_weights(folder / "model.h5")

    return run


def external_link(file: Any, folder: Path) -> None:
    import h5py

    file["secret"] = h5py.ExternalLink("other.h5", "/w")


def soft_link(file: Any, folder: Path) -> None:
    import h5py

    file["again"] = h5py.SoftLink("/w")


def external_storage(file: Any, folder: Path) -> None:
    (folder / "secret.txt").write_bytes(bytes(8))
    file.create_dataset("secret", (2,), np.float32, external=[(folder / "secret.txt", 0, 8)])


def virtual(file: Any, folder: Path) -> None:
    import h5py

    layout = h5py.VirtualLayout((2,), np.float32)
    layout[:] = h5py.VirtualSource("other.h5", "w", (2,))
    file.create_virtual_dataset("secret", layout)


def words(content: bytes) -> Run:
    def run(folder: Path) -> None:
        (folder / "tokenizer.json").write_bytes(content)
        tokenizer.load(folder / "tokenizer.json").encode("a dog", 8)

    return run


def vocabulary(ids: dict[str, int], **more: Any) -> bytes:
    model = {"type": "BPE", "vocab": ids, "merges": []}
    return json.dumps({"model": model} | more).encode()


SPECIAL = {"<pad>": 0, "<bos>": 1, "<eos>": 2}
UNKNOWN = {"type": "WordLevel", "vocab": SPECIAL, "unk_token": "<unk>"}
DEEP = '{"file_name": "two.png", "text": "a dog", "note": ' + "[" * 100_000 + "]" * 100_000 + "}"
DIGITS = '{"file_name": "two.png", "text": "a dog", "label": 1' + "0" * 5000 + "}"
ALL_KINDS = "👩‍🚀 e\u0301 אבג \u202eRTL\u202c ﷽ 𝔘𝔫𝔦 \x00\x1b[31m \ufffe \U0010ffff"
