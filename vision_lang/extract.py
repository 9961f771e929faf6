"""Images or texts -> features of a run's network, as .npz archives.

    python -m vision_lang.extract --run=DIR --images=DIR_OR_GLOB --layer=pool4 --out=features.npz
    python -m vision_lang.extract --run=DIR --texts=captions.txt --out=texts.npz

An archive holds `features` [N, D], `names` [N], and what they can be compared by: `network`,
`network_hash`, `resize`. Names are the pictures' files, or the texts themselves, which stand one a
line in the file. The layer is by default `embedding` where a run has one (that of a contrastive
or clip run, in which pictures are near their texts, is what vision_lang.search wants); else the
last but the logits, with --spatial the last of those that have places; of a diffusion run's texts
the `states` that its U-Net looks at. FID's Inception gives its layer 2048.

Spatial layers are averaged over the picture, unless --spatial asks for all of [N, h, w, D]; those
of texts over the text's tokens, or else [N, L, D] with `mask` [N, L]. More than --shard_size
examples become shards, features-00000.npz and so on, written as they come, so that any number
fits; every command that reads features takes a path or a pattern such as 'features-*.npz'. What
cannot be read (a broken picture, an empty line, a text that is too long for the run) is named on
stderr and the rest goes on; the exit code is 1 then.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from absl import flags
from etils import epath

from vision_lang import flags as commands
from vision_lang.errors import InputError

FLAGS = flags.FLAGS


def main() -> None:
    """Defines the flags and runs the command."""
    commands.define_run()
    flags.DEFINE_multi_string("images", [], "Files, folders or patterns.")
    flags.DEFINE_string("texts", "", "A file of texts, one a line, instead of --images.")
    flags.DEFINE_string("layer", "", "Which intermediate; '' = the embedding, or the last.")
    flags.DEFINE_bool("spatial", False, "Keep where features are, instead of their mean.")
    flags.DEFINE_string("out", "features.npz", "The archive, or what its shards are named after.")
    flags.DEFINE_integer("shard_size", 10_000, "The most examples of an archive.", lower_bound=1)
    flags.DEFINE_bool("overwrite", False, "Replace archives that exist.")
    commands.run(_run)


def _run() -> None:
    from vision_lang.training import devices

    devices.set_up()
    from vision_lang import run_features
    from vision_lang.data import pictures, texts
    from vision_lang.over_inputs import one_by_one
    from vision_lang.training import setup

    if bool(FLAGS.images) == bool(FLAGS.texts):
        raise InputError("Say what the features are to be of: either --images or --texts.")
    items: Any
    if FLAGS.images:
        what, items = "pictures", pictures.find(FLAGS.images)
        count = len(items)
    else:
        what, items = "texts", texts.lines(FLAGS.texts)
        count = texts.count(FLAGS.texts)
    paths, old = _paths(count)
    loaded = setup.load(FLAGS.run, FLAGS.weights)
    layer = run_features.layer_of(loaded, what, FLAGS.layer, FLAGS.spatial)
    rows = run_features.rows(loaded, what, layer, FLAGS.spatial)
    reader = run_features.KINDS[what].reader(loaded)
    found = (
        (name, row) for name, _, row in one_by_one(loaded, reader, items, count, rows, "extract")
    )
    recipe = run_features.recipe(loaded, what, layer)
    for path in old:
        path.unlink()
    _write(found, paths, recipe)


def _paths(count: int) -> tuple[list[epath.Path], list[epath.Path]]:
    """Where the archives go, and those of that name that are there already: an earlier call may
    have made more of them, which a glob of the shards would find.

    Raises:
      InputError: there are some, and nothing is said of overwriting.
    """
    out = epath.Path(FLAGS.out)
    if out.suffix != ".npz":
        raise InputError(f"--out={FLAGS.out}: a name that ends in .npz is wanted.")
    parts = -(-count // FLAGS.shard_size)
    paths = [out.with_name(f"{out.stem}-{k:05d}.npz") for k in range(parts)] if parts > 1 else [out]
    old = [out] * out.exists() + sorted(out.parent.glob(f"{out.stem}-{'[0-9]' * 5}.npz"))
    if old and not FLAGS.overwrite:
        raise InputError(f"'{old[0]}' exists: give another --out, or --overwrite.")
    return paths, old


def _write(
    found: Iterator[tuple[str, dict[str, np.ndarray]]],
    paths: list[epath.Path],
    recipe: dict[str, Any],
) -> None:
    """Writes the archives one by one; only one of them is in memory."""
    places = iter(paths)
    names: list[str] = []
    rows: list[dict[str, np.ndarray]] = []

    def flush() -> None:
        path = next(places)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with path.open("wb") as file:
                arrays: dict[str, Any] = {
                    key: np.stack([row[key] for row in rows]) for key in rows[0]
                }
                np.savez(file, names=np.array(names), **arrays, **recipe)
        except OSError as error:
            raise InputError(f"'{path}' cannot be written: {error.strerror or error}.") from error
        print(path)
        names.clear()
        rows.clear()

    try:
        for name, row in found:
            names.append(name)
            rows.append(row)
            if len(rows) == FLAGS.shard_size:
                flush()
    finally:  # also where some could not be read, which ends the command
        if rows:
            flush()


if __name__ == "__main__":
    main()
