"""VGG as torchvision, timm and Keras publish it.

The stages, widths and classes are read off the tensors: torchvision's files have no config. Which
preprocessing the weights were trained with is a fact about their source, and goes with the network.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vision_lang.errors import InputError
from vision_lang.models.vgg import VGG, VGGS, VGGSpec
from vision_lang.pretrained import layout, tensors
from vision_lang.pretrained.layout import BATCH_NORM, BIAS, CONV, DENSE, KERAS, Leaf, Row
from vision_lang.pretrained.tensors import Tensors

IGNORED = r".*\.num_batches_tracked"
STAGES = 5
KERAS_HEAD = {"fc1": "fc6", "fc2": "fc7", "predictions": "logits"}


@dataclass(frozen=True, eq=False)
class PublishedVGG:
    """Attributes:
    net: the network.
    source: whose layout: "torchvision" | "timm" | "keras".
    preprocessing: the row of tasks.preprocessing.PREPROCESSINGS that the weights were trained with.
      What vision_lang.export wrote says so itself.
    """

    net: VGG
    source: str
    preprocessing: str

    def apply(self, variables: Any, images: jax.Array) -> dict[str, jax.Array]:
        """images: [B, H, W, 3], preprocessed. Returns `logits` [B, classes], where there is a head,
        and every intermediate of `models.vgg.VGG`."""
        made: Any = self.net.apply(variables, images, train=False)
        logits, found = made
        return found if logits is None else {"logits": logits, **found}

    def shapes(self) -> Any:
        """Its variables as shapes."""
        side = 32 if self.net.spec.grid or self.net.spec.head == "none" else 224
        init = functools.partial(self.net.init, train=False)
        image = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
        return jax.eval_shape(init, jax.random.key(0), image)

    def rows(self) -> tuple[Row, ...]:
        """The table of its layout."""
        return ROWS[self.source](self.net.spec)


def read(path: Any) -> tuple[PublishedVGG, Any]:
    """Returns the network and its variables."""
    found = tensors.open(path)
    if found.source.name.endswith(tensors.HDF5):
        found = _named_layers(found)
    if any(name.startswith("block1_conv1.") for name in found):
        source = "keras"
        spec = _of_keras(found)
    else:
        source = "timm" if any(name.startswith("pre_logits.") for name in found) else "torchvision"
        spec = _of_torch(found, source)
    last = {"keras": "predictions.bias", "timm": "head.fc.bias", "torchvision": "classifier.6.bias"}
    classes = 0 if spec.head == "none" else found.shape(last[source])[0]
    usual = "keras" if source == "keras" else "torchvision"
    preprocessing = found.metadata.get("preprocessing", usual)
    model = PublishedVGG(VGG(spec, classes), source, preprocessing)
    return model, layout.read(found, model.shapes(), model.rows(), IGNORED)


def _of_torch(found: Tensors, source: str) -> VGGSpec:
    """Reads torchvision's and timm's stages off the gaps that pools leave in `features.N`."""
    numbered = (re.fullmatch(r"features\.(\d+)\.weight", name) for name in found)
    shapes = {int(m[1]): found.shape(m[0]) for m in numbered if m}
    widths = {n: shape[0] for n, shape in sorted(shapes.items()) if len(shape) == 4}
    if 0 not in widths:
        raise _no_vgg(found)
    batch_norm = len(shapes) > len(widths)
    step = 3 if batch_norm else 2  # to the next convolution of the same stage
    stages: list[list[int]] = []
    for number, width in widths.items():
        if number - step not in widths:
            stages.append([])
        stages[-1].append(width)
    dense = (
        ["pre_logits.fc1", "pre_logits.fc2"]
        if source == "timm"
        else ["classifier.0", "classifier.3"]
    )
    hidden = tuple(found.shape(f"{n}.weight")[0] for n in dense if f"{n}.weight" in found)
    spec = VGGSpec(tuple(map(tuple, stages)), hidden, batch_norm=batch_norm, head="dense")
    if not hidden:
        return dataclasses.replace(spec, head="none")
    places = math.prod(found.shape(f"{dense[0]}.weight")[1:]) / stages[-1][-1]
    return dataclasses.replace(spec, grid=_grid(places, found))


def _of_keras(found: Tensors) -> VGGSpec:
    stages: dict[str, list[int]] = {}
    for name in sorted(found):  # no stage has ten convolutions
        if m := re.fullmatch(r"block(\d)_conv\d\.kernel", name):
            stages.setdefault(m[1], []).append(found.shape(name)[3])
    if len(stages) != STAGES:
        raise _no_vgg(found)
    spec = VGGSpec(tuple(tuple(stages[s]) for s in sorted(stages)), hidden=(), head="none")
    if "fc1.kernel" not in found:
        return spec
    hidden = tuple(found.shape(f"{name}.kernel")[1] for name in ("fc1", "fc2"))
    places = found.shape("fc1.kernel")[0] / spec.stages[-1][-1]
    return VGGSpec(spec.stages, hidden, grid=_grid(places, found))


def _grid(places: float, found: Tensors) -> int:
    """The side of the map that the first dense layer reads."""
    grid = math.isqrt(int(places))
    if grid**2 != places:
        raise InputError(f"'{found.source}': its dense layers read a map that is not square.")
    return grid


def _named_layers(found: Tensors) -> Tensors:
    """Keras's tensors as 'block1_conv1.kernel', whichever of its formats.

    Keras 1 wrote 'block1_conv1/block1_conv1_W_1:0', Keras 2 'block1_conv1/block1_conv1/kernel:0';
    Keras 3 numbers the layers of a kind and their tensors: 'layers/conv2d_3/vars/0'. Files of a
    whole model have all of it in 'model_weights'.
    """
    parts = {"W": "kernel", "b": "bias", "kernel": "kernel", "bias": "bias"}
    named = re.compile(r"(?:model_weights/)?(\w+)/(?:\1/)?(?:\1_)?(W|b|kernel|bias)(?:_1)?(?::0)?")
    numbered = re.compile(r"(?:_?layers/)?(conv2d|dense)(?:_(\d+))?/vars/([01])")
    order = _keras_order(sum(bool(re.search(r"conv2d(_\d+)?/vars/0$", name)) for name in found))

    def rename(name: str) -> str:
        if m := named.fullmatch(name):
            return f"{m[1]}.{parts[m[2]]}"
        if m := numbered.fullmatch(name):
            names = order if m[1] == "conv2d" else list(KERAS_HEAD)
            if int(m[2] or 0) < len(names):
                return f"{names[int(m[2] or 0)]}.{'kernel' if m[3] == '0' else 'bias'}"
        return name

    return found.renamed(rename)


def _keras_order(convolutions: int) -> list[str]:
    """The names of so many convolutions, by the network that has as many; [] if none has."""
    for spec in VGGS.values():
        names = [
            f"block{s}_conv{i + 1}" for s, w in enumerate(spec.stages, 1) for i in range(len(w))
        ]
        if len(spec.stages) == 5 and len(names) == convolutions:
            return names
    return []


def _no_vgg(found: Tensors) -> InputError:
    return InputError(
        f"'{found.source}' holds no VGG: it has no convolution named features.0.weight, as in "
        "torchvision and timm, or block1_conv1, as in Keras."
    )


def _torchvision(spec: VGGSpec) -> tuple[Row, ...]:
    """`features.N` counts convolutions, batch norms, ReLUs and pools, `classifier.N` likewise."""
    rows, at = [], 0
    for stage, widths in enumerate(spec.stages, start=1):
        for i in range(1, len(widths) + 1):
            rows.append(Row(f"features.{at}", f"conv{stage}_{i}", CONV))
            if spec.batch_norm:
                rows.append(Row(f"features.{at + 1}", f"conv{stage}_{i}_bn", BATCH_NORM))
            at += 3 if spec.batch_norm else 2
        at += 1
    return (
        *rows,
        Row("classifier.0", "fc6", (_of_map(spec.grid, convolution=False), BIAS)),
        Row("classifier.3", "fc7", DENSE),
        Row("classifier.6", "logits", DENSE),
    )


def _timm(spec: VGGSpec) -> tuple[Row, ...]:
    """fc6 and fc7 are convolutions, over 7x7 places and over one."""
    return (
        *_torchvision(spec)[:-3],
        Row("pre_logits.fc1", "fc6", (_of_map(spec.grid, convolution=True), BIAS)),
        Row("pre_logits.fc2", "fc7", (_of_map(1, convolution=True), BIAS)),
        Row("head.fc", "logits", DENSE),
    )


def _of_map(side: int, convolution: bool) -> Leaf:
    """A dense layer that reads a map: [out, C side side], or as a convolution [out, C, side, side]
    there; [side side C, out] here."""

    def to_ours(x: np.ndarray) -> np.ndarray:
        x = x.reshape(x.shape[0], -1, side, side)
        return x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0])

    def to_published(x: np.ndarray) -> np.ndarray:
        x = x.reshape(side, side, -1, x.shape[1]).transpose(3, 2, 0, 1)
        return x if convolution else x.reshape(x.shape[0], -1)

    return Leaf("weight", "kernel", to_ours, to_published)


def _keras(spec: VGGSpec) -> tuple[Row, ...]:
    convolutions = Row("block{}_conv{}", "conv{}_{}", KERAS)
    return (convolutions, *(Row(theirs, ours, KERAS) for theirs, ours in KERAS_HEAD.items()))


ROWS = {"torchvision": _torchvision, "timm": _timm, "keras": _keras}
