"""Images -> features of a run's network, as .npz archives.

    python -m vision_lang.extract --run=DIR --images=DIR_OR_GLOB --layer=pool4 --out=features.npz

An archive holds `features` [N, D], `names` [N], and what they can be compared by: `network`,
`network_hash`, `resize`. Spatial layers are averaged over the picture, unless --spatial asks for
all of [N, h, w, D]. More than --shard_size pictures become shards, features-00000.npz and so on,
written as they come, so that any number fits; every command that reads features takes a path or a
pattern such as 'features-*.npz'.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from absl import flags
from etils import epath

from vision_lang import flags as commands
from vision_lang.errors import InputError, choose

FLAGS = flags.FLAGS


def main() -> None:
    """Defines the flags and runs the command."""
    commands.define_run()
    flags.DEFINE_multi_string("images", [], "Files, folders or patterns.")
    flags.DEFINE_string("layer", "", "Which intermediate; '' = the last but the logits.")
    flags.DEFINE_bool("spatial", False, "Keep where features are, instead of their mean.")
    flags.DEFINE_string("out", "features.npz", "The archive, or what its shards are named after.")
    flags.DEFINE_integer("shard_size", 10_000, "The most pictures of an archive.", lower_bound=1)
    flags.DEFINE_bool("overwrite", False, "Replace archives that exist.")
    commands.run(_run)


def _run() -> None:
    from vision_lang.training import devices

    devices.set_up()
    from vision_lang.data import pictures
    from vision_lang.over_pictures import answers
    from vision_lang.runs import records
    from vision_lang.training import setup

    names = pictures.find(FLAGS.images)
    paths = _paths(len(names))
    loaded = setup.load(FLAGS.run, FLAGS.weights)
    config = loaded.config
    if config.task == "diffusion":
        raise InputError(f"Run '{FLAGS.run}' is a {config.task} run: it has no features to give.")
    layer = _layer(loaded)

    def rows(variables, batch):
        found = loaded.task.layers(variables, batch["image"])[layer].astype(np.float32)
        return found if FLAGS.spatial or found.ndim == 2 else found.mean((1, 2))

    recipe: dict[str, Any] = {
        "network": f"vgg_{layer}",
        "network_hash": records.digest(loaded.variables)[:16],
        "resize": f"{config.data.crop} to {config.data.resolution} px",
    }
    found = ((name, row) for name, _, row in answers(loaded, names, rows, "extract"))
    _write(found, paths, recipe)


def _layer(loaded: Any) -> str:
    """The layer that is asked for, or the last one before the logits."""
    import jax

    spec = loaded.task.batch_spec()["image"]
    image = jax.ShapeDtypeStruct((1, *spec.shape), spec.dtype)
    shapes = jax.eval_shape(loaded.task.layers, loaded.variables, image)
    if FLAGS.layer:
        choose(shapes, FLAGS.layer, "layer")
        return FLAGS.layer
    return [name for name in shapes if name != "logits"][-1]


def _paths(count: int) -> list[epath.Path]:
    """Where the archives go; refused if one of them is there already."""
    out = epath.Path(FLAGS.out)
    if out.suffix != ".npz":
        raise InputError(f"--out={FLAGS.out}: a name that ends in .npz is wanted.")
    shards = -(-count // FLAGS.shard_size)
    paths = [out] if shards == 1 else [
        out.with_name(f"{out.stem}-{k:05d}.npz") for k in range(shards)
    ]  # fmt: skip
    there = [path for path in paths if path.exists()]
    if there and not FLAGS.overwrite:
        raise InputError(f"'{there[0]}' exists: give another --out, or --overwrite.")
    return paths


def _write(
    features: Iterator[tuple[str, np.ndarray]], paths: list[epath.Path], recipe: dict[str, Any]
) -> None:
    """Writes the archives one by one; only one of them is in memory."""
    places = iter(paths)
    names: list[str] = []
    rows: list[np.ndarray] = []

    def flush() -> None:
        path = next(places)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with path.open("wb") as file:
                arrays: dict[str, Any] = {"features": np.stack(rows), "names": np.array(names)}
                np.savez(file, **arrays, **recipe)
        except OSError as error:
            raise InputError(f"'{path}' cannot be written: {error.strerror or error}.") from error
        print(path)
        names.clear()
        rows.clear()

    try:
        for name, row in features:
            names.append(name)
            rows.append(row)
            if len(rows) == FLAGS.shard_size:
                flush()
    finally:  # also where some pictures could not be read, which ends the command
        if rows:
            flush()


if __name__ == "__main__":
    main()
