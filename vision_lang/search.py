"""The nearest of extracted features to texts and pictures, by cosine, as JSON lines on stdout.

    python -m vision_lang.search --run=DIR --features=features.npz --query="a red circle" -k 5

--features is what vision_lang.extract made of pictures or of texts with the same weights of the
same run: an archive, or a pattern such as 'features-*.npz', whose shards are read one by one. A
query that is an existing file is a picture, anything else a text; --query may be given several
times. A line: query, rank, name, similarity. Texts and pictures are comparable by the `embedding`
of a contrastive or clip run alone; a picture finds pictures, and a text texts, by any layer.
"""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np
from absl import flags

from vision_lang import flags as commands
from vision_lang.errors import InputError

FLAGS = flags.FLAGS


def main() -> None:
    """Defines the flags and runs the command."""
    commands.define_run()
    flags.DEFINE_string("features", "", "Where to search: an .npz archive, or a glob of shards.")
    flags.DEFINE_multi_string("query", [], "A picture's file, or a text.")
    flags.DEFINE_integer("k", 5, "How many of the nearest are told.", lower_bound=1)
    commands.run(_run)


def _run() -> None:
    from vision_lang.training import devices

    devices.set_up()
    from vision_lang import run_features
    from vision_lang.data import features as files
    from vision_lang.metrics.nearest import nearest
    from vision_lang.training import setup

    if not FLAGS.features or not FLAGS.query:
        raise InputError('Say where to search and for what: --features=FILE --query="...".')
    recipe = next(files.shards(FLAGS.features)).recipe
    what, layer = run_features.kind_of(recipe["network"])
    loaded = setup.load(FLAGS.run, FLAGS.weights)
    run_features.layer_of(loaded, what, layer, spatial=False)
    own = run_features.recipe(loaded, what, layer)
    files.same_recipe(FLAGS.features, recipe, FLAGS.run, own)
    queries = _embedded(loaded, what, layer)
    parts = ((shard.features, shard.names) for shard in files.shards(FLAGS.features, named=True))
    for query, found in zip(FLAGS.query, nearest(queries, parts, FLAGS.k), strict=True):
        for rank, (similarity, name) in enumerate(found, start=1):
            line = {"query": query, "rank": rank, "name": name, "similarity": round(similarity, 6)}
            print(json.dumps(line), flush=True)


def _embedded(loaded: Any, what: str, layer: str) -> np.ndarray:
    """The queries' features [Q, D], comparable with those that `layer` gives of `what`."""
    from vision_lang import run_features, tasks
    from vision_lang.data.builders.folder_files import PICTURE_ENDINGS
    from vision_lang.over_inputs import batchwise

    asked: dict[str, list[str]] = {"pictures": [], "texts": []}
    for query in FLAGS.query:
        is_file = os.path.isfile(query)
        if not is_file and query.lower().endswith(PICTURE_ENDINGS):
            raise InputError(f"--query={query}: there is no such picture.")
        asked["pictures" if is_file else "texts"].append(query)
    joint = loaded.config.task in tasks.MATCHING and layer == "embedding"
    found: dict[str, np.ndarray] = {}
    for kind, queries in asked.items():
        if not queries:
            continue
        if kind != what and not joint:
            raise InputError(
                f"'{queries[0]}' is of {kind}, but '{FLAGS.features}' holds the layer '{layer}' of "
                f"{what}: only the layer 'embedding' of a contrastive or clip run holds both."
            )
        reader = run_features.KINDS[kind].reader(loaded)
        items = queries if kind == "pictures" else [(query, query) for query in queries]
        rows = run_features.rows(loaded, kind, layer, spatial=False)
        for names, _, answers in batchwise(loaded, reader, items, rows):
            found |= zip(names, answers["features"], strict=False)  # without the padding
        for query, reason in reader.bad.items():
            raise InputError(f"--query={query}: {reason}")
    return np.stack([found[query] for query in FLAGS.query])


if __name__ == "__main__":
    main()
