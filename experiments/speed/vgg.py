"""A training step of VGG16 with 1,000 classes, against torch and Keras.

The network is Keras's: no batch norm, no dropout, and the dense layers read the last pool as it is.
At 224 px it is the paper's and torchvision's too; at 64 px that pool is 2x2 instead of 7x7.
"""

from __future__ import annotations

import functools
import itertools
import os
from typing import Any

import numpy as np

from experiments.speed import floors, ours, peers
from experiments.speed.case import OURS, Case, Contest, Options
from experiments.speed.unet import differences

CLASSES, SMOOTHING = 1000, 0.1
# Column D of the paper's table 1.
STAGES = ((64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3)
HIDDEN = 4096


def rows(options: Options) -> int:
    """Pictures in a batch."""
    return options.size(cpu=32, cuda=128, small=2)


def config(side: int, options: Options) -> Any:
    """configs/recognition.py with the whole VGG16."""
    from configs import recognition

    found = recognition.get_config("size=16")
    found.batch_size, found.cpu_devices = rows(options), min(2, options.threads)
    found.data.resolution = side
    found.model.encoder.update(
        width=1.0, batch_norm=False, head="dense", dropout=0.0, grid=side // 32
    )
    found.model.dtype = "bfloat16" if options.device == "cuda" else "float32"
    found.augmentation.pad, found.label_smoothing = 0, SMOOTHING
    ours.optimizer(found)
    return found


def _ours(options: Options, side: int) -> Contest:
    from vision_lang.models.vgg import VGGSpec

    made = config(side, options)
    forward = floors.vgg(VGGSpec(**made.model.encoder), side, CLASSES)
    found = ours.training(made, ours.facts(classes=CLASSES), options)
    return found._replace(flops={**found.flops, "hand": 3 * forward * rows(options)})


def network(side: int) -> Any:
    """The paper's network in torch, its layers in torchvision's order and under its names."""
    import torch  # noqa: TID251
    from torch import nn  # noqa: TID251

    layers: list[nn.Module] = []
    for inputs, stage in zip((3, 64, 128, 256, 512), STAGES, strict=True):
        for a, b in itertools.pairwise((inputs, *stage)):
            layers += [nn.Conv2d(a, b, 3, padding=1), nn.ReLU(inplace=True)]
        layers.append(nn.MaxPool2d(2))
    widths = (512 * (side // 32) ** 2, HIDDEN, HIDDEN)
    head: list[nn.Module] = []
    for a, b in itertools.pairwise(widths):
        head += [nn.Linear(a, b), nn.ReLU(inplace=True), nn.Identity()]  # dropout stands there
    found = nn.Sequential()
    found.features = nn.Sequential(*layers)
    found.flatten = nn.Flatten()
    found.classifier = nn.Sequential(*head, nn.Linear(HIDDEN, CLASSES))
    for parameter in found.parameters():  # He et al.'s, so that logits depend on the pictures
        if parameter.ndim > 1:
            torch.nn.init.kaiming_normal_(parameter)
    return found


def _pictures(side: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    pictures = rng.integers(256, size=(count, side, side, 3)).astype(np.uint8)
    return pictures, rng.integers(CLASSES, size=count)


def _peer(options: Options, compiled: bool, last: bool, side: int) -> Contest:
    torch = peers.set_up(options)
    pictures, labels = (
        torch.tensor(a, device=options.device) for a in _pictures(side, rows(options))
    )

    def loss(made):
        x = pictures.permute(0, 3, 1, 2) / 127.5 - 1.0
        x = x.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
        logits = made["vgg"](x).float()
        return torch.nn.functional.cross_entropy(logits, labels, label_smoothing=SMOOTHING)

    return peers.training({"vgg": network(side)}, loss, options, compiled=compiled, last=last)


def _keras(options: Options, side: int, backend: str) -> Contest:
    """`train_on_batch`, all of whose work the backend compiles that it can."""
    os.environ["KERAS_BACKEND"] = backend
    if backend == "torch":
        peers.set_up(options)
    import keras

    if options.device == "cuda":
        keras.config.set_dtype_policy("mixed_bfloat16")
    model = keras.applications.VGG16(
        weights=None, input_shape=(side, side, 3), classes=CLASSES, classifier_activation=None
    )
    model.compile(
        optimizer=keras.optimizers.AdamW(1e-4, weight_decay=0.01, global_clipnorm=1.0),
        loss=keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=SMOOTHING),
    )
    pictures, labels = _pictures(side, rows(options))
    x = pictures.astype(np.float32) / 127.5 - 1.0
    y = np.eye(CLASSES, dtype=np.float32)[labels]

    def unit() -> None:
        model.train_on_batch(x, y)  # returns the loss as a number, and so waits for it
        peers.finish(options) if backend == "torch" else None

    return Contest(unit, {"parameters": model.count_params()})


def agree(options: Options, side: int) -> dict[str, float]:
    """Logits and the gradient's norm from the same weights, as relative differences."""
    torch = peers.set_up(options)
    import jax
    import optax

    from vision_lang.models.vgg import VGG, VGGSpec

    theirs = network(side)
    params: dict[str, Any] = {}
    names = [f"conv{s}_{i + 1}" for s, stage in enumerate(STAGES, 1) for i in range(len(stage))]
    layers = [m for m in theirs.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    for name, layer in zip((*names, "fc6", "fc7", "logits"), layers, strict=True):
        weight = layer.weight.detach()
        if name == "fc6":  # reads a map of C, h, w there, and of h, w, C here
            weight = weight.reshape(HIDDEN, 512, side // 32, -1).permute(0, 2, 3, 1).flatten(1)
        weight = weight.permute(*range(weight.ndim)[2:], 1, 0)
        params[name] = {"kernel": weight.numpy(), "bias": layer.bias.detach().numpy()}
    net = VGG(VGGSpec(**config(side, options).model.encoder), CLASSES)
    pictures, labels = _pictures(side, 2)
    x = pictures.astype(np.float32) / 127.5 - 1.0

    def our_loss(params):
        logits, _ = net.apply({"params": params}, x, train=False)
        return -jax.nn.log_softmax(logits)[np.arange(2), labels].mean()

    value, gradient = jax.jit(jax.value_and_grad(our_loss))(params)
    logits = theirs(torch.tensor(x).permute(0, 3, 1, 2))
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor(labels))
    expected.backward()
    norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
    return differences(
        loss=(float(value), float(expected)),
        gradient_norm=(float(optax.tree.norm(gradient)), float(norm)),
    )


def _case(what: str, side: int, target: float | None, devices: tuple[str, ...]) -> Case:
    kerases = {
        f"keras_{backend}": functools.partial(_keras, side=side, backend=backend)
        for backend in ("jax", "torch")
    }
    return Case(
        what,
        {
            OURS: functools.partial(_ours, side=side),
            **peers.sides(functools.partial(_peer, side=side)),
            **kerases,
        },
        functools.partial(agree, side=side),
        target,
        devices,
    )


CASES = {
    "vgg16": _case("training step, VGG16, 64 px, batch 32", 64, 1.0, ("cpu",)),
    "vgg16_224": _case("training step, VGG16, 224 px, batch 128", 224, None, ("cuda",)),
}
