"""What every config shares: the common fields, and the argument behind the colon.

A config file is a plain function, called as `configs/x.py:key=value,flag=true`:

    from configs import common

    def get_config(arg=""):
        arg = common.parse_arg(arg, tiny=False, data="shapes")
        config = common.base(arg.data)
        config.steps = 20 if arg.tiny else 3_000
        return config

It may also name the runs of a study, for vision_lang.sweep:

    def sweep():
        return common.product(common.each("optimizer.learning_rate", (1e-3, 2e-3)), common.seeds(3))
"""

from __future__ import annotations

import ast
import itertools
from collections.abc import Iterable
from typing import Any

from ml_collections import ConfigDict

from vision_lang.data import presets
from vision_lang.errors import InputError, suggestion


def base(data: str = "shapes") -> ConfigDict:
    """Returns the fields that all configs have, with their defaults (unlocked), and those of
    config.data that suit a data set."""
    config = ConfigDict()
    config.seed = 0  # all that is random is a function of (seed, purpose, step, example)
    config.steps = 1_000  # optimizer steps in the whole run
    config.batch_size = 32  # examples per optimizer step, over all devices
    config.accumulate = 1  # a step's batch is computed in this many equal parts
    config.log_every = 50  # steps between two logged averages
    config.eval_every = 500  # steps between two evaluations; 0: only at the end
    config.save_every = 500  # steps between two checkpoints; 0: only at the end
    config.keep = 2  # the latest checkpoints that stay
    config.keep_period = 0  # every checkpoint at a multiple of this stays; 0: none
    config.keep_best = ""  # "metric:min" or "metric:max": the best one stays too; "": none
    config.workers = 0  # processes that read data; 0: in the main process
    config.deterministic = False  # XLA's bitwise repeatable kernels on GPU (slower)
    config.require_accelerator = False  # stop where JAX finds only the CPU
    # How a step runs over devices: "pmap" | "jit", which do the same, each device with all of the
    # state | "fsdp": each keeps a part of it, for a model that one device cannot hold
    config.parallel = "pmap"
    config.cpu_devices = 2  # that a CPU counts as; at most what divides the batch
    config.max_bad_steps = 0  # NaN or Inf updates in a row that are skipped before stopping
    config.profile = (0, 0)  # the first and the last step that are traced; (0, 0): none
    config.stuck_after = 600.0  # s that data, a step, a save, ... may take unsaid; 0: any time

    # Low-rank updates of the kernels that match, which are frozen (vision_lang/training/lora.py);
    # rank 0: none.
    config.lora = ConfigDict({"rank": 0, "alpha": 8.0, "pattern": ""})

    config.init = ConfigDict()  # sub-tree -> "RUN[@step][:ema|raw]", ""; the task's config has them
    config.init_except = ""  # pattern of parameter paths that init neither asks for nor takes

    # What each field means: vision_lang/data/presets.py.
    config.data = ConfigDict(presets.fields(data))
    config.data.name = data
    return config


def optimizer(learning_rate: float, warmup: int = 100) -> ConfigDict:
    """Returns config.optimizer without its groups, which name the parameters of a model."""
    optimizer = ConfigDict()
    optimizer.learning_rate = learning_rate  # of groups with learning_rate_scale=1
    optimizer.schedule = "linear"  # "linear" | "cosine" | "constant", after the warm-up
    optimizer.warmup = warmup  # steps
    optimizer.clip_norm = 1.0  # 0: none
    optimizer.b1 = 0.9
    optimizer.b2 = 0.99
    optimizer.eps = 1e-8
    optimizer.momentum = 0.95  # of rule=muon
    optimizer.frozen = ()  # patterns of parameter paths that are not trained
    return optimizer


def adamw(pattern: str, weight_decay: float = 0.0, learning_rate_scale: float = 1.0) -> dict:
    """Returns an entry of config.optimizer.groups: the parameters whose whole path matches."""
    return {
        "pattern": pattern,
        "rule": "adamw",
        "weight_decay": weight_decay,
        "learning_rate_scale": learning_rate_scale,
    }


def muon(
    pattern: str, weight_decay: float = 0.01, learning_rate_scale: float = 5.0, parts: int = 1
) -> dict:
    """Returns an entry of config.optimizer.groups for matrices and the kernels of convolutions,
    each of which holds `parts` matrices side by side."""
    return {
        "pattern": pattern,
        "rule": "muon",
        "weight_decay": weight_decay,
        "learning_rate_scale": learning_rate_scale,
        "parts": parts,
    }


def shrink(config: ConfigDict) -> None:
    """Makes it a run of seconds; its networks and evaluators are its own to shrink."""
    config.steps = 20
    config.batch_size = 8
    config.log_every = 5
    config.eval_every = 10
    config.save_every = 10
    config.optimizer.warmup = 5
    if config.data.name == "shapes":
        config.data.name = "shapes/tiny"


def each(field: str, values: Iterable[Any]) -> list[dict[str, Any]]:
    """For a config's `sweep()`: a run for each value of one field."""
    return [{field: value} for value in values]


def seeds(count: int) -> list[dict[str, Any]]:
    """For a config's `sweep()`: a run for each of so many seeds."""
    return each("seed", range(count))


def product(*factors: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """For a config's `sweep()`: every run of one factor with every run of the others; the last one
    varies first. Fields that go together stand in one dict of a factor."""
    combinations = itertools.product(*factors)
    return [{name: v for part in parts for name, v in part.items()} for parts in combinations]


def parse_arg(arg: str | None, **defaults: Any) -> ConfigDict:
    """Returns `defaults` with what `arg` sets, as a locked ConfigDict.

    Args:
      arg: "key=value,flag=true"; "" or None leaves the defaults. A bool may stand alone ("tiny").
        Commas inside brackets belong to a value: "widths=(8,16)".
      **defaults: the known keys; the type of a default (bool, int, float, str, tuple) is the
        type that its value must have.

    Raises:
      InputError: an unknown key (with a suggestion), a key given twice, a wrong type, an entry
        that is empty or has no value.
    """
    values = dict(defaults)
    seen = set()
    for entry in _split(arg or ""):
        key, equals, text = (part.strip() for part in entry.partition("="))
        if key not in defaults:
            raise InputError(
                f"Unknown config argument '{key}' in ':{arg}'.{suggestion(key, list(defaults))}"
            )
        if key in seen:
            raise InputError(f"Config argument '{key}' is given twice in ':{arg}'.")
        seen.add(key)
        if not equals and not isinstance(defaults[key], bool):
            raise InputError(f"Config argument '{key}' has no value; write '{key}=...'.")
        values[key] = _typed(key, text if equals else "true", defaults[key])
    return ConfigDict(values).lock()


def _split(arg: str) -> list[str]:
    """Splits at the commas outside of brackets."""
    if not arg.strip():
        return []
    entries, depth = [""], 0
    for char in arg:
        depth += (char in "([") - (char in ")]")
        if char == "," and depth == 0:
            entries.append("")
        else:
            entries[-1] += char
    if any(not entry.strip() for entry in entries):
        raise InputError(
            f"Config argument ':{arg}' has an empty entry; write ':key=value,key=value'."
        )
    return entries


def _typed(key: str, text: str, default: Any) -> Any:
    """Reads `text` as the type of `default`."""
    kind = type(default)
    if kind is str:
        return text
    if kind is bool:
        if text.lower() in ("true", "false"):
            return text.lower() == "true"
        raise InputError(f"Config argument '{key}={text}': true or false is wanted.")
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = None
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        names = {int: "a whole number", float: "a number", tuple: "a tuple such as (1,2)"}
        raise InputError(f"Config argument '{key}={text}': {names[kind]} is wanted.")
    return value
