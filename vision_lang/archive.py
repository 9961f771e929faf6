"""Packs a run as a supplement of a paper: what it says of itself, its weights, a model card.

    python -m vision_lang.archive --run=RUN --out=FILE.json      the record alone
    python -m vision_lang.archive --run=RUN --out=FILE.zip       all of it
    python -m vision_lang.archive --run=RUN --out=FOLDER

All of it: README.md, which is a model card written from the rest; record.json and the run's own
files (config, provenance, data, metrics, results, final, tokenizer, samples); the weights of the
newest good checkpoint without the optimizer, weights/raw.safetensors and one file for each average,
by the paths of the parameters. No path of this machine is in it (but where the code's own
uncommitted changes have one). The same run gives the same zip, to the bit.

vision_lang.reproduce makes the run again from the record or from the folder.
"""

from __future__ import annotations

import collections
import math
import os
import shutil
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from vision_lang import flags as commands
from vision_lang.errors import InputError

if TYPE_CHECKING:
    from vision_lang.runs.folder import RunFolder
    from vision_lang.runs.record import Record

FLAGS = flags.FLAGS
EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time that a zip can hold


def main() -> None:
    """Defines the flags and runs the command."""
    flags.DEFINE_string("run", "", "Run folder.")
    flags.DEFINE_string("out", "", "FILE.json, FILE.zip, or a folder.")
    flags.DEFINE_bool("overwrite", False, "Replace --out if it is there.")
    commands.run(_run)


def _run() -> None:
    from vision_lang.runs import files, folder
    from vision_lang.runs import record as record_lib

    if not FLAGS.out:
        raise InputError("Say where to: --out=FILE.json, --out=FILE.zip or --out=FOLDER.")
    out = files.absolute(FLAGS.out)
    run = folder.open(FLAGS.run, checkpoint=out.suffix != ".json")
    if out.suffix == ".json":
        if out.exists() and (out.is_dir() or not FLAGS.overwrite):
            raise _there_already()
        record_lib.write(record_lib.of_run(run), out)
    elif not files.is_local(out):
        raise InputError(f"--out={FLAGS.out}: a place on this machine's disks is wanted.")
    else:
        _pack(run, record_lib.of_run(run), Path(out))
    print(FLAGS.out)


def _there_already() -> InputError:
    return InputError(
        f"'{FLAGS.out}' is there already; --overwrite replaces a file, or a folder that was "
        "written by this command."
    )


def _pack(run: RunFolder, record: Record, out: Path) -> None:
    """Makes all of it beside `out`, then gives it that name: whole or not at all.

    Raises:
      InputError: there is something that may not be replaced; the disk is full or not writable.
    """
    zipped = out.suffix == ".zip"
    replaceable = out.is_file() if zipped else (out / "record.json").is_file()
    if out.exists() and not (FLAGS.overwrite and replaceable):
        raise _there_already()
    made, old = (out.parent / f".{out.name}.{what}-{os.getpid()}" for what in ("new", "old"))
    try:
        made.mkdir(parents=True)
        _fill(run, record, made)
        if zipped:
            packed = made / ".zip"
            _zip(made, packed)
            packed.replace(out)
            return
        if out.exists():
            out.rename(old)
        made.rename(out)
        if old.exists():
            shutil.rmtree(old)
    except OSError as error:
        raise InputError(f"'{FLAGS.out}' cannot be written: {error.strerror or error}.") from error
    finally:
        if made.exists():
            shutil.rmtree(made)


def _fill(run: RunFolder, record: Record, place: Path) -> None:
    """Writes every file of a supplement into an empty folder."""
    from etils import epath

    from vision_lang.runs import card, files
    from vision_lang.runs import config as config_lib
    from vision_lang.runs import record as record_lib

    there = epath.Path(place)
    record_lib.write(record, there / "record.json")
    record = record_lib.portable(record)
    files.write_text(there / "config.json", config_lib.to_json(record.config))
    if record.starts:
        files.write_json(there / "provenance.json", {"starts": record.starts})
        diff = record.starts[-1].get("git", {}).get("diff")
        if diff:
            files.write_text(there / card.PATCH, diff)
    for path in (run.data, run.results, run.examples, run.final, run.metrics, run.tokenizer):
        if path.exists():
            (there / path.name).write_bytes(path.read_bytes())
    pictures = (
        [p for p in run.samples.iterdir() if p.suffix == ".png"] if run.samples.exists() else []
    )
    for path in pictures:
        (there / "samples").mkdir(exist_ok=True)
        (there / "samples" / path.name).write_bytes(path.read_bytes())
    step, networks = _write_weights(run, list(record.config.ema), there / "weights")
    (there / "README.md").write_text(card.write(record, networks, step, _names(place)))


def _write_weights(run: RunFolder, averages: list[str], place) -> tuple[int, dict[str, int]]:
    """Writes the weights; returns their step and {network: number of parameters}."""
    import numpy as np

    from vision_lang.pretrained import tensors
    from vision_lang.training import stored

    place.mkdir()
    step = None
    for average in ("", *averages):
        step, found = stored.read_weights(run, average, step)
        dense = {name: np.asarray(x, order="C") for name, x in found.items()}
        tensors.write(place / f"{average or 'raw'}.safetensors", dense, {})
    networks: collections.Counter[str] = collections.Counter()
    for name, array in dense.items():
        collection, network, *_ = name.split("/")
        networks[network] += math.prod(array.shape) if collection == "params" else 0
    assert step is not None
    return step, dict(networks)


def _names(place: Path) -> list[str]:
    """The files below a folder, as 'samples/a.png', sorted."""
    return sorted(p.relative_to(place).as_posix() for p in place.rglob("*") if p.is_file())


def _zip(place: Path, out: Path) -> None:
    """Packs the files of a folder. Times, modes and order are fixed, and nothing is compressed:
    what a compressor makes depends on its version."""
    names = _names(place)
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name in names:
            entry = zipfile.ZipInfo(name, EPOCH)
            entry.create_system, entry.external_attr = 3, 0o644 << 16
            entry.file_size = (place / name).stat().st_size
            with (place / name).open("rb") as source, archive.open(entry, "w") as target:
                shutil.copyfileobj(source, target, 1 << 20)


if __name__ == "__main__":
    main()
