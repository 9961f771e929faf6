"""Compares two sets of features in every way.

    python -m vision_lang.metrics.frechet --a=generated.npz --b=reference.npz [--out=record.json]

prints one JSON object: the Frechet distance fd_NETWORK (Heusel et al. 2017), the kernel distance
kd_NETWORK_mean and _std over subsets, precision, recall, density and coverage (of a, with b as what
is real), and how they were made. They are called fid and kid for the network 'inception_fid' alone.
Either side is an .npz archive with an array `features` [N, D], or a glob of such shards.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from vision_lang import flags as commands
from vision_lang.data import features as files
from vision_lang.errors import InputError
from vision_lang.metrics import kernel, neighbours
from vision_lang.metrics.frechet import (
    Statistics,
    distance_names,
    frechet_distance,
    merged,
    statistics,
)

FLAGS = flags.FLAGS
METRICS = ("fd", "kd", "support")


def main() -> None:
    """Defines the flags and runs the command."""
    flags.DEFINE_string("a", None, "Features to judge, as of generated images: .npz or a glob.")
    flags.DEFINE_string("b", None, "Features to compare with, as of real images.")
    flags.DEFINE_string("out", "", "A file for the record, which is printed in any case.")
    flags.DEFINE_list("metrics", list(METRICS), f"Which of {', '.join(METRICS)}.")
    flags.DEFINE_integer(
        "subset_size", None, "Examples per subset of kd; default 1,000.", lower_bound=2
    )
    flags.DEFINE_integer("subsets", kernel.SUBSETS, "Subsets of kd.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "Draws the subsets of kd.", lower_bound=0)
    flags.DEFINE_integer(
        "k",
        None,
        "Nearest neighbours; default 3 (precision, recall), 5 (density, coverage).",
        lower_bound=1,
    )
    flags.DEFINE_boolean("allow_few", False, "Accept fewer examples than dimensions.")
    commands.run(_run)


def _run() -> None:
    record = _compare()
    if FLAGS.out:
        commands.write_record(FLAGS.out, record)
    print(json.dumps(record, indent=2))


class _Side(NamedTuple):
    statistics: Statistics
    features: np.ndarray | None  # [N, D] as stored; None where only statistics are wanted
    recipe: dict[str, str]


def _read(flag: str, keep: bool) -> _Side:
    """Streams the shards of a side: one at a time is in memory, unless features are kept."""
    pattern = FLAGS[flag].value
    if not pattern:
        raise InputError(f"Flag --{flag} must have a value: a file of features.")
    recipe: dict[str, str] = {}
    kept = []

    def stream() -> Iterable[Statistics]:
        for shard in files.shards(str(pattern)):
            recipe.update(shard.recipe)
            if keep:
                kept.append(shard.features)
            yield statistics(shard.features)

    total = merged(stream())
    return _Side(total, np.concatenate(kept) if keep else None, recipe)


def _compare() -> dict[str, Any]:
    """All that the flags ask for, as one record."""
    wanted = set(FLAGS.metrics)
    if not wanted or wanted - set(METRICS):
        raise InputError(f"--metrics={','.join(FLAGS.metrics)}: some of {', '.join(METRICS)}.")
    keep = wanted != {"fd"}
    a, b = _read("a", keep), _read("b", keep)
    files.same_recipe(FLAGS.a, a.recipe, FLAGS.b, b.recipe)
    dimension = len(a.statistics.mean)
    if dimension != len(b.statistics.mean):
        raise InputError(
            f"'{FLAGS.a}' has {dimension} dimensions, '{FLAGS.b}' {len(b.statistics.mean)}: "
            "features of one network and layer are wanted."
        )
    network = a.recipe["network"]
    fd_name, kd_name = distance_names(network)
    record: dict[str, Any] = {}
    if "fd" in wanted:
        distance = frechet_distance(a.statistics, b.statistics, allow_few=FLAGS.allow_few)
        record[fd_name] = distance
        record["allow_few"] = FLAGS.allow_few
    count = min(a.statistics.count, b.statistics.count)
    size = kernel.SUBSET_SIZE if FLAGS.subset_size is None else FLAGS.subset_size
    if count < size and FLAGS["subset_size"].present + FLAGS["metrics"].present == 0:
        # Not asked for by name: leave it out, and say so, rather than refuse the others too.
        wanted.discard("kd")
        record["left_out"] = f"kd, as {count} examples are fewer than {size}: set --subset_size."
        print(f"left out: {record['left_out']}", file=sys.stderr)
    if "kd" in wanted:
        kd = kernel.kernel_distance(
            a.features, b.features, subsets=FLAGS.subsets, subset_size=size, seed=FLAGS.seed
        )
        record |= {f"{kd_name}_mean": kd.mean, f"{kd_name}_std": kd.std}
        record |= {"subsets": FLAGS.subsets, "subset_size": size, "seed": FLAGS.seed}
    if "support" in wanted:
        k_precision = FLAGS.k or neighbours.K_PRECISION
        k_density = FLAGS.k or neighbours.K_DENSITY
        record |= neighbours.support(
            b.features, a.features, k_precision=k_precision, k_density=k_density
        )._asdict()
        record |= {"k_precision_recall": k_precision, "k_density_coverage": k_density}
    record |= {"a": FLAGS.a, "count_a": a.statistics.count}
    record |= {"b": FLAGS.b, "count_b": b.statistics.count}
    return record | {"dimension": dimension} | a.recipe


if __name__ == "__main__":
    main()
