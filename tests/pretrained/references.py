"""Compares `vision_lang.pretrained` with an example that a reference library made."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import jax
import numpy as np
from safetensors import safe_open

from vision_lang import pretrained

TOLERANCE = 3e-6  # root mean square of the error, as a part of the output's


def rms(x: Any) -> float:
    return float(np.sqrt((np.asarray(x, np.float64) ** 2).mean()))


def read(folder: pathlib.Path) -> tuple[str, dict[str, dict[str, np.ndarray]]]:
    """Returns the kind, and {"inputs" | "outputs" | "errors": {name: array}}."""
    parts: dict[str, dict[str, np.ndarray]] = {"inputs": {}, "outputs": {}, "errors": {}}
    with safe_open(folder / "example.safetensors", "numpy") as file:
        for name in file.keys():  # noqa: SIM118
            part, _, rest = name.partition("/")
            parts[part][rest] = file.get_tensor(name)
        return file.metadata()["kind"], parts


def weights(folder: pathlib.Path) -> pathlib.Path:
    """The file of weights beside the example, of which a folder should hold no second."""
    (found,) = (
        p for p in folder.iterdir() if p.suffix in (".safetensors", ".h5") and p.stem != "example"
    )
    return found


def compare(folder: pathlib.Path) -> dict[str, float]:
    """Demands of every output an error of at most 3e-6 of it, or of ten times the library's own.
    Returns the relative errors."""
    kind, parts = read(folder)
    model, variables = pretrained.load(kind, weights(folder))
    found = jax.jit(model.apply)(variables, **parts["inputs"])
    flat: dict[str, Any] = {}
    for name, value in found.items():
        numbered = enumerate(value) if isinstance(value, tuple) else None
        flat |= {name: value} if numbered is None else {f"{name}.{i}": x for i, x in numbered}
    errors = {}
    for name, expected in parts["outputs"].items():
        assert flat[name].shape == expected.shape, name
        error = rms(np.asarray(flat[name]) - expected)
        allowed = max(TOLERANCE * rms(expected), 10 * float(parts["errors"][name]))
        assert error <= allowed, f"{folder.name}, {name}: {error:.2g}, allowed {allowed:.2g}"
        errors[name] = error / rms(expected)
    return errors


def config_of(folder: pathlib.Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())
