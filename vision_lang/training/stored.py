"""The weights of a run, without its optimizer: 'RUN[@step][:ema|raw|std=S]'."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from vision_lang.errors import InputError
from vision_lang.runs import checkpoint
from vision_lang.runs import folder as folder_lib
from vision_lang.training import averages, lora
from vision_lang.training.averages import Stored

# Of a certain kind; std=S is an average that is made of those that the run has stored.
WHICH = re.compile(r"ema|raw|std=[\d.]+")
OTHERS = ("frozen", "mutable")  # of a step, beside its trained parameters; it may have none
FAR = 0.1  # from an average's profile, relative to it; what is further is said


def weights_of(spec: str) -> tuple[str, dict[str, np.ndarray]]:
    """Reads 'RUN[@step][:ema|raw|std=S]': returns (where from, variables by path,
    'params/unet/...').

    `ema` (the default where the run has one) is the run's first average.

    Raises:
      InputError: no such run, checkpoint or average.
    """
    path, step, which = parse(spec)
    run = folder_lib.open(path, checkpoint=True)
    kept = list(run.read_config().ema.keys())
    if which.startswith("std="):
        found, leaves, detail = _post_hoc(run, step, which.removeprefix("std="))
        return f"{path}@{found} ({detail})", leaves
    if which == "ema" and not kept:
        raise InputError(f"'{spec}': that run keeps no average; use ':raw'.")
    average = kept[0] if kept and which != "raw" else ""
    found, leaves = read_weights(run, average, step)
    return f"{path}@{found} ({average or 'raw'})", leaves


def read_weights(
    run: folder_lib.RunFolder, average: str = "", step: int | None = None
) -> tuple[int, dict[str, np.ndarray]]:
    """Returns (step, variables by path, 'params/unet/...'), with LoRA's updates merged.

    Args:
      run: a run that has a checkpoint.
      average: the name of one, '' = the raw parameters.
      step: a certain step; default the newest good one.
    """
    name = f"ema/{average}/params" if average else "params"
    found, parts = checkpoint.restore_part(run.checkpoints, [name], step, optional=OTHERS)
    return found, _whole(run, flat(parts[name]), parts)


def _averages(
    run: folder_lib.RunFolder, names: Iterable[str], what: str, step: int
) -> dict[str, Any]:
    """`params` or `count` of averages, by name."""
    paths = {name: f"ema/{name}/{what}" for name in names}
    _, parts = checkpoint.restore_part(run.checkpoints, paths.values(), step)
    return {name: parts[path] for name, path in paths.items()}


def _whole(
    run: folder_lib.RunFolder, trained: dict[str, Any], parts: dict[str, Any]
) -> dict[str, np.ndarray]:
    # Parameters are stored by their paths already, those that are trained apart from the others.
    params = {f"params/{path}": leaf for path, leaf in (trained | flat(parts["frozen"])).items()}
    return lora.merge(params, lora.scale(run.read_config())) | flat(parts["mutable"])


def _post_hoc(
    run: folder_lib.RunFolder, step: int | None, std: str
) -> tuple[int, dict[str, np.ndarray], str]:
    """The power-function average of another deviation, of all checkpoints up to a step.

    Raises:
      InputError: the run keeps no such averages, or that is no deviation.
    """
    specs = {name: spec.std for name, spec in run.read_config().ema.items() if "std" in spec}
    if not specs:
        raise InputError(
            f"'{run.root}' keeps no power-function averages (config.ema.NAME.std), of which one of "
            f"std={std} could be made."
        )
    with checkpoint.Checkpoints(run.checkpoints) as saved:
        steps = [s for s in saved.steps() if step is None or s <= step]
    if not steps or step not in (None, steps[-1]):
        raise InputError(f"'{run.root}' has no good checkpoint of step {step}.")
    counts = [_averages(run, specs, "count", s) for s in steps]
    had = [Stored(int(n), specs[name]) for found in counts for name, n in found.items()]
    factors, error = averages.mixture(had, Stored(had[-1].updates, _number(std)))
    left = iter(factors)
    total: dict[str, Any] = {}
    types: dict[str, Any] = {}
    for s in steps:
        for params in _averages(run, specs, "params", s).values():
            factor = next(left)
            for path, leaf in flat(params).items():
                total[path] = total.get(path, 0.0) + factor * leaf.astype(np.float64)
                types[path] = leaf.dtype
    trained = {path: x.astype(types[path]) for path, x in total.items()}
    detail = f"std={std} of {len(had)} averages, its profile to {error:.1%}"
    if error > FAR:
        detail += ": keep more checkpoints (config.keep_period) for a nearer one"
    last, others = checkpoint.restore_part(run.checkpoints, [], steps[-1], optional=OTHERS)
    return last, _whole(run, trained, others), detail


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise InputError(f"std={text}: a number is wanted, such as std=0.1.") from error


def spec(path: str, weights: str) -> str:
    """Returns the spec of a run's weights; '': those that `path` says.

    Raises:
      InputError: there are no weights of that name.
    """
    if weights and not WHICH.fullmatch(weights):
        raise InputError(f"--weights={weights}: ema, raw or std=S is wanted, such as std=0.1.")
    return f"{path}:{weights}" if weights else path


def parse(spec: str) -> tuple[str, int | None, str]:
    """'RUN@1000:raw' -> ('RUN', 1000, 'raw'). A path may hold colons and @s elsewhere: only digits
    behind the last @ are a step."""
    path, _, which = spec.rpartition(":")
    if not (path and WHICH.fullmatch(which)):
        path, which = spec, ""
    before, _, step = path.rpartition("@")
    return (before, int(step), which) if before and step.isdecimal() else (path, None, which)


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts as {'a/b/c': leaf}."""
    if not isinstance(tree, dict):
        return {prefix[:-1]: tree}
    return {k: v for name, sub in tree.items() for k, v in flat(sub, f"{prefix}{name}/").items()}
