"""Configs as text: stored with a run, compared with another, and their errors as sentences.

Every field has one type (ml_collections keeps it): int, float, bool, str, a tuple of these, or a
nested ConfigDict. There is no None and no list: neither can be set from the command line, and
JSON has one kind of sequence, so that a config survives `from_json(to_json(c))` exactly.
"""

from __future__ import annotations

import fnmatch
import hashlib
import importlib.util
import json
import math
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from vision_lang.errors import InputError, suggestion

# What may differ when a run is resumed: how long, how often and on what, never what is learned.
# (Where the data lie: that they are the same is what data.json's fingerprint says.)
# (A field that joins or leaves changes `lasting_hash`, and so what older checkpoints are held to.)
CHANGEABLE = (
    "steps", "log_every", "eval_every", "save_every", "keep", "keep_period", "keep_best", "workers",
    "require_accelerator", "cpu_devices", "max_bad_steps", "stuck_after", "profile", "data.path",
    "data.dir",
)  # fmt: skip

# Fields that stored configs may lack, as they have come since, and what such a run goes on with.
ADDED = {"stuck_after": 600.0, "profile": (0, 0)}

MISSING = "(missing)"  # stands in `differences` for a field that one side does not have

_WANTED = {
    bool: "true or false",
    int: "a whole number written in digits, such as 1000",
    float: "a number, such as 0.001",
    tuple: "a tuple, such as (1,2)",
}


# What is wanted, the test of it, and the fields that it is wanted of; * stands for any name. Of a
# tuple each entry is tested. How fields must fit together is said where they are used.
RANGES: tuple[tuple[str, Callable[[Any], Any], str], ...] = (
    ("1 or more", lambda x: x >= 1,
     "steps batch_size accumulate log_every keep cpu_devices data.resolution model.patch "
     "model.encoder.stages model.encoder.hidden model.perceptual.stages model.autoencoder.widths "
     "model.autoencoder.layers model.autoencoder.groups model.autoencoder.latent_channels "
     "model.unet.widths model.unet.groups "
     "model.unet.layers model.decoder.layers model.vision.patch model.projection "
     "model.sketch.cells model.*.heads model.*.mlp_ratio "
     "decoding.beams evaluators.*.batch_size evaluators.*.device_batch evaluators.*.columns"),
    ("3 or more, for begin, end and a word between them,", lambda x: x >= 3, "data.text_length"),
    ("0 or more", lambda x: x >= 0,
     "eval_every save_every keep_period workers max_bad_steps stuck_after profile kl_weight "
     "perceptual_weight optimizer.learning_rate "
     "optimizer.warmup optimizer.clip_norm optimizer.groups.*.weight_decay "
     "optimizer.groups.*.learning_rate_scale model.unet.depth model.text.layers "
     "model.vision.layers model.text.distance_slopes model.sketch.layers model.sketch.hints "
     "model.encoder.grid "
     "model.margin.margin diffusion.*_weight sampling.guidance sampling.eta augmentation.pad "
     "augmentation.brightness augmentation.contrast augmentation.saturation augmentation.mixup "
     "augmentation.cutmix lora.rank decoding.top_k decoding.min_length decoding.no_repeat_ngram "
     "evaluators.*.count evaluators.*.final_count evaluators.*.shown"),
    ("a number above 0", lambda x: x > 0,
     "ema.*.std optimizer.eps lora.alpha model.*.width model.*.epsilon model.margin.scale "
     "sampling.shift decoding.temperature"),
    ("a share from 0 to 1", lambda x: 0 <= x <= 1,
     "caption_drop data.max_bad_share sampling.interval sampling.rescale augmentation.erase"),
    ("0 or more and less than 1", lambda x: 0 <= x < 1,
     "ema.*.decay optimizer.b1 optimizer.b2 optimizer.momentum label_smoothing model.*.dropout "
     "model.encoder.momentum"),
    ("a level from 0 to 255", lambda x: 0 <= x <= 255, "data.background"),
    ("a whole number from 0 to 2**32 - 1", lambda x: 0 <= x < 2**32, "seed"),  # JAX drops the rest
    ("a valid regular expression", re.compile,
     "init_except lora.pattern optimizer.frozen optimizer.groups.*.pattern"),
)  # fmt: skip


def to_json(config: ConfigDict) -> str:
    """Returns the config as indented JSON, fields sorted.

    Raises:
      InputError: a field holds something that is not a number, bool, string, tuple or ConfigDict.
    """
    for path, value in flatten(config).items():
        _check_storable(path, value)
    return json.dumps(config.to_dict(), indent=2, sort_keys=True, allow_nan=False) + "\n"


def from_json(text: str) -> ConfigDict:
    """Returns the locked config that `to_json` wrote (sequences become tuples).

    Raises:
      InputError: the text is not JSON, or no object.
    """
    try:
        tree = json.loads(text)
    except ValueError as e:
        raise InputError(f"The stored config is not valid JSON ({e}).") from e
    if not isinstance(tree, dict):
        raise InputError("The stored config is not a JSON object.")
    return ConfigDict(_tuples(tree)).lock()


def of_run(text: str) -> ConfigDict:
    """Returns the locked config of a run folder's config.json, with the fields of `ADDED`.

    Raises:
      InputError: as `from_json` does.
    """
    return ConfigDict(ADDED | from_json(text).to_dict()).lock()


def fingerprint(config: ConfigDict) -> str:
    """Returns the sha256 (hex) of the stored form of a config."""
    return hashlib.sha256(to_json(config).encode()).hexdigest()


def lasting_hash(config: ConfigDict) -> str:
    """Returns the sha256 (hex) of what a run keeps of its config: all but `CHANGEABLE`."""
    kept = {path: value for path, value in flatten(config).items() if path not in CHANGEABLE}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, allow_nan=False).encode()).hexdigest()


def load(spec: str) -> ConfigDict:
    """Returns the locked config of `configs/x.py[:argument]` or of a stored `.../config.json`.

    Raises:
      InputError: the file does not exist, or its `get_config` refuses the argument; an argument
        for a stored config, which has none.
    """
    filename, _, argument = spec.partition(":")
    if not os.path.isfile(filename):
        raise InputError(f"Config file '{filename}' does not exist.")
    if filename.endswith(".json"):
        if argument:
            raise InputError(f"A stored config takes no argument: --config={filename} alone.")
        with open(filename, encoding="utf-8") as f:
            return of_run(f.read())
    return _module(filename).get_config(argument).lock()


def sweep(filename: str) -> list[dict[str, Any]]:
    """Returns what the `sweep()` of a config file yields: {field: value} for each run, and under
    "arg" what is added to the config's argument.

    Raises:
      InputError: the file does not exist, is no Python file, or has no sweep; a run is no dict, or
        stands there twice.
    """
    if not os.path.isfile(filename):
        raise InputError(f"Config file '{filename}' does not exist.")
    function = getattr(_module(filename), "sweep", None)
    if function is None:
        raise InputError(f"Config file '{filename}' has no function sweep(), which names the runs.")
    runs = list(function())
    for number, run in enumerate(runs):
        if not isinstance(run, dict):
            raise InputError(f"sweep() of '{filename}': {{field: value}} is wanted, not {run!r}.")
        if run in runs[:number]:
            raise InputError(f"sweep() of '{filename}' has a run twice: {run}.")
    if not runs:
        raise InputError(f"sweep() of '{filename}' names no run.")
    return runs


def _module(filename: str) -> Any:
    """The module in a Python file."""
    module_spec = importlib.util.spec_from_file_location("loaded_config", filename)
    if module_spec is None or module_spec.loader is None:
        raise InputError(f"Config file '{filename}' is no Python file.")
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    return module


def flatten(config: Mapping[str, Any] | ConfigDict, prefix: str = "") -> dict[str, Any]:
    """Returns {dotted path: value}; an empty nested config has no entry."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, (ConfigDict, Mapping)):
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat


def differences(a: ConfigDict, b: ConfigDict) -> dict[str, tuple[Any, Any]]:
    """Returns {dotted path: (value in a, value in b)} where they differ; MISSING where absent."""
    old, new = flatten(a), flatten(b)
    pairs = {p: (old.get(p, MISSING), new.get(p, MISSING)) for p in sorted(old.keys() | new.keys())}
    return {p: (x, y) for p, (x, y) in pairs.items() if _comparable(x) != _comparable(y)}


def check_resume(stored: ConfigDict, given: ConfigDict) -> dict[str, tuple[Any, Any]]:
    """Returns the differences that a resumed run may have (fields in CHANGEABLE), to be logged.

    Raises:
      InputError: another field differs, or one side lacks it; each is shown, old and new.
    """
    different = differences(stored, given)
    refused = {p: pair for p, pair in different.items() if p not in CHANGEABLE}
    if refused:
        lines = [f"  {p}: {_show(old)} -> {_show(new)}" for p, (old, new) in refused.items()]
        raise InputError(
            "The given config differs from the run's own in fields that a resumed run must keep "
            "(stored -> given):\n" + "\n".join(lines) + "\nResume with --workdir alone, or start "
            "a new run from this one with --fork=NEW."
        )
    return different


def check_types(config: ConfigDict, defaults: ConfigDict) -> None:
    """Checks what ml_collections does not: the types of a tuple's entries.

    A tuple may change its length; each entry must have the type of one of the default's entries
    (an int is welcome where a float is wanted). An empty default says nothing.

    Raises:
      InputError: an entry has another type; the field, its value and the type are named.
    """
    wanted = flatten(defaults)
    for path, value in flatten(config).items():
        default = wanted.get(path)
        if not isinstance(value, tuple) or not isinstance(default, tuple) or not default:
            continue
        types = {type(entry) for entry in default}
        allowed = types | {int} if float in types else types
        if any(type(entry) not in allowed for entry in value):
            names = " or ".join(sorted(t.__name__ for t in types))
            raise InputError(
                f"config.{path} = {value}: a tuple of {names} is wanted, as in {default}."
            )


def check_ranges(config: ConfigDict) -> None:
    """Checks each field on its own against `RANGES`.

    Raises:
      InputError: a field is out of its range; the field, its value and what is wanted are named.
    """
    for path, value in flatten(config).items():
        for wanted, fits, fields in RANGES:
            named = any(fnmatch.fnmatchcase(path, field) for field in fields.split())
            if named and not all(_holds(fits, entry) for entry in _entries(value)):
                raise InputError(f"config.{path} = {value!r}: {wanted} is wanted.")


def _holds(fits: Callable[[Any], Any], entry: Any) -> bool:
    try:
        return bool(fits(entry))
    except (TypeError, re.error):  # another type, in a tuple whose default is empty
        return False


def _entries(value: Any) -> list[Any]:
    """The value, or what a tuple holds, tuples in it opened."""
    return [e for v in value for e in _entries(v)] if isinstance(value, tuple) else [value]


def parse_flags_error(error: BaseException, argv: Sequence[str] | None = None) -> InputError:
    """Returns what went wrong in parsing `--config...` flags, as a sentence.

    Handles what absl and ml_collections 1.1.0 raise: an unknown field (AttributeError), a value of
    a wrong type, an unknown flag, a config file that is absent or refuses its argument.

    Args:
      error: what `flags.FLAGS(argv)` raised.
      argv: the command line, to name the flag that ml_collections' own error does not; default
        sys.argv.
    """
    argv = list(sys.argv if argv is None else argv)
    own = _deepest_input_error(error)
    if own is not None:
        return own
    text = str(error.args[0]) if error.args else str(error)
    if isinstance(error, (AttributeError, KeyError)):
        return _unknown_field(text, argv)
    illegal = re.match(r"flag --([\w.]+)=(.*?): (.*)", text, re.DOTALL)
    if illegal:
        flag, value, reason = illegal.groups()
        for kind, mark in ((int, "int()"), (float, "to float"), (bool, "Non-boolean")):
            if mark in reason:
                return InputError(f"--{flag}={value}: {_WANTED[kind]} is wanted.")
        return InputError(f"--{flag}={value}: {reason}")
    missing = re.search(r"No such file or directory: '([^']*)'", text)
    if missing:
        return InputError(f"Config file '{missing.group(1)}' does not exist.")
    return InputError(text if text.endswith((".", "?")) else text + ".")


def _unknown_field(text: str, argv: list[str]) -> InputError:
    names = re.findall(r"'([\w-]+)'", text)
    pattern = re.compile(r"--(?:no)?config\.([\w.]+)")
    given = [m.group(1) for m in map(pattern.match, argv) if m]
    if names:
        given = [g for g in given if names[0] in g.split(".")]
    if not given:
        return InputError(text.replace("\n", " "))
    config = _config_of(argv)
    known = list(flatten(config))
    hint = suggestion(given[0], known) if known else ""
    parent, _, leaf = given[0].rpartition(".")
    if parent in config and not flatten(config[parent]):  # init, whose names are the user's
        hint = f" Write --config.{parent}=\"{{'{leaf}': ...}}\"."
    same_leaf = [k for k in known if k.rpartition(".")[2] == leaf]
    if same_leaf:  # text_length for data.text_length
        hint = f" Did you mean '{same_leaf[0]}'?"
    return InputError(f"--config.{given[0]}: the config has no such field.{hint}")


def _config_of(argv: list[str]) -> ConfigDict:
    """Returns the config that a command line names, an empty one where it cannot be loaded."""
    specs = [a.partition("=")[2] for a in argv if a.startswith("--config=")]
    specs += [b for a, b in zip(argv, argv[1:], strict=False) if a == "--config"]
    try:
        return load(specs[0]) if specs else ConfigDict()
    except InputError:
        return ConfigDict()


def _deepest_input_error(error: BaseException | None) -> InputError | None:
    """ml_collections re-raises with the traceback as text; the first of the chain is ours."""
    found = None
    while error is not None:
        if isinstance(error, InputError):
            found = error
        error = error.__cause__ or error.__context__
    return found


def _check_storable(path: str, value: Any) -> None:
    entries = value if isinstance(value, tuple) else (value,)
    for entry in entries:
        if isinstance(entry, tuple):
            _check_storable(path, entry)
        elif not isinstance(entry, (bool, int, float, str)):
            raise InputError(
                f"config.{path} holds {entry!r}; a config field is a number, bool, string, or a "
                "tuple of these."
            )
        elif isinstance(entry, float) and not math.isfinite(entry):
            raise InputError(f"config.{path} = {entry} cannot be stored; choose a finite number.")


def _comparable(value: Any) -> Any:
    """Values compare with their types: 1 is not True; a tuple equals the list that JSON gives."""
    if isinstance(value, (tuple, list)):
        return [_comparable(v) for v in value]
    return (type(value), value)


def _show(value: Any) -> str:
    return value if value is MISSING else repr(value)


def _tuples(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {name: _tuples(value) for name, value in tree.items()}
    if isinstance(tree, list):
        return tuple(_tuples(value) for value in tree)
    return tree
