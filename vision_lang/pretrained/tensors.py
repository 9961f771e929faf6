"""Files of published weights: safetensors (one, or sharded with an index) and Keras's HDF5.

A file is a mapping from a tensor's name to the tensor, read when it is asked for. Nothing is
downloaded, and nothing is unpickled.
"""

from __future__ import annotations

import collections
import io
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath

from vision_lang.errors import InputError

PICKLES = (".pth", ".pt", ".bin", ".ckpt", ".pkl", ".pickle")
HDF5 = (".h5", ".hdf5")
INDEX = ".safetensors.index.json"
OTHERS = ("tf_model.h5",)  # transformers' own for TensorFlow, with other names than all others
HALF = {np.dtype(np.float16), np.dtype(jnp.bfloat16)}


class Entry(NamedTuple):
    """A tensor that has not been read yet."""

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


class Tensors(Mapping[str, np.ndarray]):
    """The tensors of one source.

    Attributes:
      source: the file, for messages.
      metadata: what a safetensors file says of itself.
    """

    def __init__(
        self,
        source: epath.Path,
        entries: Mapping[str, Entry],
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self.source = source
        self.metadata = dict(metadata or {})
        self._entries = dict(entries)

    def __getitem__(self, name: str) -> np.ndarray:
        return self._entries[name].read()

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:  # Mapping's own would read it
        return name in self._entries

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, which is not read for it."""
        return self._entries[name].shape

    def renamed(self, rename: Callable[[str], str | None]) -> Tensors:
        """The same under other names; those for which `rename` gives None are left out."""
        named = {new: self._entries[old] for old in self if (new := rename(old)) is not None}
        return Tensors(self.source, named, self.metadata)


def float32(tensors: Tensors, names: list[str]) -> Iterator[tuple[str, np.ndarray]]:
    """Reads the tensors `names` in float32; says in the log how many were of another type.

    Raises:
      InputError: a tensor holds no floating-point numbers.
    """
    cast: collections.Counter[str] = collections.Counter()
    for name in names:
        tensor = tensors[name]
        if tensor.dtype not in HALF and tensor.dtype.kind != "f":
            raise InputError(
                f"{tensors.source}: '{name}' holds {tensor.dtype}: weights are floating-point "
                "numbers here, and quantised ones are not read."
            )
        if tensor.dtype != np.float32:
            cast[tensor.dtype.name] += 1
        yield name, np.asarray(tensor, np.float32)
    for dtype, count in cast.items():
        logging.info("%s: %d tensors cast from %s to float32", tensors.source, count, dtype)


def open(path: Any) -> Tensors:
    """Opens a file of weights, or the one in a folder.

    Raises:
      InputError: there is none, there are several, it is damaged, a shard is missing or elsewhere,
        it refers to other files, or it is a pickle.
    """
    path = _there(path)
    file = _weights_in(path) if path.is_dir() else path
    if file.name.endswith(PICKLES):
        raise InputError(
            f"'{file}' is a pickle, which can run any code when it is read. Convert it where torch "
            f"is installed: python -m vision_lang.pretrained.from_torch {file} "
            f"{file.with_suffix('.safetensors')}"
        )
    if file.name.endswith(INDEX):
        return _open_shards(file)
    if file.name.endswith(".safetensors"):
        return Tensors(file, *_open_safetensors(file))
    if file.name.endswith(HDF5):
        return _open_hdf5(file)
    raise InputError(
        f"'{file}' is no file of weights: .safetensors, {INDEX}, .weights.h5 and .h5 are read."
    )


def config_beside(path: Any) -> dict[str, Any]:
    """Returns the config.json of a folder of weights, or of the folder that a file lies in.

    Raises:
      InputError: there is none, or it is no JSON object.
    """
    path = _there(path)
    inside = path if path.is_dir() else path.parent
    what = "which says how the network is built"
    if (inside / "model_index.json").exists():
        parts = sorted(p.name for p in inside.iterdir() if (p / "config.json").exists())
        what += f". This is a whole folder of diffusers: name one of {', '.join(parts)} in it"
    return read_json(inside / "config.json", what)


def folder(path: Any) -> epath.Path:
    """The path of a folder.

    Raises:
      InputError: there is none.
    """
    path = _there(path)
    if not path.is_dir():
        raise InputError(f"'{path}' is a file; name the folder that it lies in.")
    return path


def read_json(file: epath.Path, what: str) -> dict[str, Any]:
    """Reads one JSON object; `what` it is for goes into the message where it is missing."""
    if not file.exists():
        raise InputError(f"There is no {file}, {what}.")
    try:
        content = json.loads(file.read_text())
    except (ValueError, OSError, RecursionError) as error:
        raise InputError(f"{file} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{file} holds no JSON object.")
    return content


def _there(path: Any) -> epath.Path:
    path = epath.Path(path)
    if not path.exists():
        raise InputError(f"There is no file or folder '{path}'.")
    return path


def _weights_in(folder: epath.Path) -> epath.Path:
    """The file of weights of a folder; an index goes before its shards."""
    names = sorted(p.name for p in folder.iterdir())
    indices = [n for n in names if n.endswith(INDEX)]
    files = indices or [n for n in names if n.endswith((".safetensors", *HDF5)) and n not in OTHERS]
    # One that names no variant, as '.fp16', goes before those that do.
    plain = [n for n in files if n.removesuffix(INDEX).removesuffix(".safetensors").count(".") == 0]
    files = plain if len(plain) == 1 else files
    if len(files) == 1:
        return folder / files[0]
    if files:
        raise InputError(
            f"'{folder}' holds several files of weights, name one: {', '.join(files)}."
        )
    pickles = [n for n in names if n.endswith(PICKLES)]
    if pickles:
        return folder / pickles[0]  # refused with the way to convert it
    found = ", ".join(names[:8]) or "nothing"
    raise InputError(f"'{folder}' holds no weights (.safetensors or .h5; found: {found}).")


def _open_safetensors(file: epath.Path) -> tuple[dict[str, Entry], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        handle = safe_open(str(file), framework="numpy")
        shapes = {name: handle.get_slice(name).get_shape() for name in handle.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"'{file}' is cut off or no safetensors file ({error}); it has "
            f"{file.stat().length:,} bytes. Fetch it again."
        ) from error

    def entry(name: str) -> Entry:
        return Entry(tuple(shapes[name]), lambda: _read(file, name, handle.get_tensor))

    return {name: entry(name) for name in shapes}, handle.metadata() or {}


def _read(file: epath.Path, name: str, read: Callable[[str], Any]) -> np.ndarray:
    """One tensor, by what a library reads it with.

    Raises:
      InputError: it is damaged, or of a type that NumPy has not.
    """
    try:
        return np.asarray(read(name))
    except Exception as error:  # noqa: BLE001  (each library has its own, and plain ones)
        reason = f"{type(error).__name__}: {error}"
        raise InputError(f"'{file}': '{name}' cannot be read ({reason}).") from error


def _open_shards(index: epath.Path) -> Tensors:
    where = read_json(index, "the index of the shards").get("weight_map")
    if not isinstance(where, dict):
        raise InputError(f"'{index}' has no 'weight_map': it is no index of shards.")
    for file in where.values():
        if not isinstance(file, str) or "/" in file or not file.endswith(".safetensors"):
            raise InputError(
                f"'{index}' names a shard {file!r}: shards are safetensors files beside their "
                "index, others are refused."
            )
    missing = sorted({f for f in where.values() if not (index.parent / f).exists()})
    if missing:
        raise InputError(f"'{index}' names shards that are not there: {', '.join(missing)}.")
    shards = {f: _open_safetensors(index.parent / f)[0] for f in sorted(set(where.values()))}
    lost = sorted(name for name, file in where.items() if name not in shards[file])
    if lost:
        some = ", ".join(lost[:8])
        raise InputError(f"'{index}' names {len(lost)} tensors that its shards lack: {some}.")
    return Tensors(index, {name: shards[file][name] for name, file in where.items()})


def _open_hdf5(file: epath.Path) -> Tensors:
    """Every dataset, by its path in the file."""
    import h5py

    try:
        handle = h5py.File(str(file), "r")
    except OSError as error:
        raise InputError(f"'{file}' is cut off or no HDF5 file ({error}).") from error
    links: dict[str, Any] = {}
    items: dict[str, Any] = {}
    try:
        handle.visititems_links(links.__setitem__)
        handle.visititems(items.__setitem__)
    except (OSError, RuntimeError, KeyError, TypeError) as error:
        raise InputError(f"'{file}' is damaged ({error}). Fetch it again.") from error
    datasets = {name: item for name, item in items.items() if isinstance(item, h5py.Dataset)}
    elsewhere = [name for name, link in links.items() if not isinstance(link, h5py.HardLink)]
    elsewhere += [name for name, data in datasets.items() if data.external or data.is_virtual]
    if elsewhere:
        raise InputError(
            f"'{file}': '{elsewhere[0]}' is a link, or its numbers are in another file: refused."
        )

    def entry(name: str, data: Any) -> Entry:
        return Entry(tuple(data.shape or ()), lambda: _read(file, name, handle.get))

    return Tensors(file, {name: entry(name, data) for name, data in datasets.items()})


def write(file: epath.Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Writes a safetensors file, or what Keras's `load_weights` reads if it is called .h5.

    Args:
      tensors: by name; 'block1_conv1.kernel' in Keras's.
      metadata: what a safetensors file says of itself beside its format.
    """
    if file.name.endswith(HDF5):
        file.write_bytes(_to_hdf5(tensors))
        return
    from safetensors.numpy import save

    file.write_bytes(save(dict(tensors), metadata={"format": "pt", **metadata}))


def _to_hdf5(tensors: Mapping[str, np.ndarray]) -> bytes:
    """Keras 2's layout, a group for each layer, which Keras 3 reads too."""
    import h5py

    layers: dict[str, list[str]] = {}
    for name in sorted(tensors, key=lambda n: (n.rpartition(".")[0], n.endswith(".bias"))):
        layers.setdefault(name.rpartition(".")[0], []).append(name)
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        file.attrs["layer_names"] = [layer.encode() for layer in layers]
        for layer, names in layers.items():
            group = file.create_group(layer)
            theirs = [f"{layer}/{name.rpartition('.')[2]}:0" for name in names]
            group.attrs["weight_names"] = [name.encode() for name in theirs]
            for there, name in zip(theirs, names, strict=True):
                group[there] = tensors[name]
    return content.getvalue()
