"""VGG against torchvision's and Keras's: random weights, every layer, training's batch norm."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vision_lang import pretrained
from vision_lang.models.vgg import VGG, VGGS, VGGSpec

torch = pytest.importorskip("torch")
if importlib.util.find_spec("torchvision") is None:
    pytest.skip("needs torchvision", allow_module_level=True)
from tests.parity.mapping import close  # noqa: E402

pytestmark = pytest.mark.parity

COLUMNS = {"11": "A", "13": "B", "16": "D", "19": "E"}
CLASSES = 10
NARROW = 1 / 16


def torchvisions(name: str, batch_norm: bool, width: float = 1.0):
    """torchvision's network; if it is to be narrow, with layers of that width in its places."""
    module = importlib.import_module("torchvision.models.vgg")
    if width == 1:
        full = getattr(module, f"vgg{name}" + "_bn" * batch_norm)
        return full(num_classes=CLASSES, init_weights=False).eval()
    column = [c if c == "M" else int(c * width) for c in module.cfgs[COLUMNS[name]]]
    with torch.device("meta"):  # its dense layers are of full width
        network = module.VGG(torch.nn.Identity(), CLASSES, init_weights=False)
    network.features = module.make_layers(column, batch_norm)
    widths = [column[-2] * 49, int(4096 * width), int(4096 * width), CLASSES]
    for i, place in enumerate((0, 3, 6)):
        network.classifier[place] = torch.nn.Linear(widths[i], widths[i + 1])
    return network.eval()


def randomise(module, seed: int) -> None:
    """Draws every parameter and every running statistic; signals keep their size."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if tensor.ndim > 1:
                tensor.normal_(generator=generator).mul_((2 / tensor[0].numel()) ** 0.5)
            elif name.endswith("running_var"):
                tensor.uniform_(0.5, 2, generator=generator)
            elif tensor.ndim == 1:
                scale = float(name.endswith("weight"))  # of a batch norm
                tensor.normal_(generator=generator).mul_(0.3).add_(scale)


def layers(module, spec: VGGSpec):
    """torchvision's layers with parameters by our names, and those whose output we return."""
    convolutions = iter(
        f"conv{s}_{i + 1}" for s, w in enumerate(spec.stages, 1) for i in range(len(w))
    )
    pools = iter(f"pool{s}" for s in range(1, 6))
    named, seen = {}, {}
    for layer in module.features:
        if isinstance(layer, torch.nn.Conv2d):
            name = next(convolutions)
            named[name] = layer
        elif isinstance(layer, torch.nn.BatchNorm2d):
            named[f"{name}_bn"] = layer
        elif isinstance(layer, torch.nn.ReLU):
            seen[name] = layer
        else:
            seen[next(pools)] = layer
    fc6, relu6, _, fc7, relu7, _, logits = module.classifier
    named |= {"fc6": fc6, "fc7": fc7, "logits": logits}
    return named, seen | {"fc6": relu6, "fc7": relu7}


def to_ours(name: str, part: str, tensor):
    """torchvision's tensor in our layout: fc6 reads a map of C, 7, 7 there and of 7, 7, C here."""
    if part != "weight" or name.endswith("_bn"):
        return tensor
    if name == "fc6":
        tensor = tensor.reshape(tensor.shape[0], -1, 7, 7)
        return tensor.permute(2, 3, 1, 0).reshape(-1, tensor.shape[0])
    return tensor.permute(*range(tensor.ndim)[2:], 1, 0)


def variables_of(module, spec: VGGSpec, read=lambda tensor: tensor):
    """Our variables from torchvision's network; `read` may take another tensor for each."""
    params, stats = {}, {}
    for name, layer in layers(module, spec)[0].items():
        weight = "scale" if name.endswith("_bn") else "kernel"
        pairs = {weight: "weight", "bias": "bias"}
        params[name] = {a: to_ours(name, b, read(getattr(layer, b))) for a, b in pairs.items()}
        if name.endswith("_bn"):
            stats[name] = {"mean": layer.running_mean, "var": layer.running_var}
    return {"params": params} | ({"batch_stats": stats} if stats else {})


def arrays(tree):
    return jax.tree.map(lambda x: x.detach().numpy().copy(), tree)


def run(module, spec: VGGSpec, images):
    """torchvision's logits and intermediates, NHWC."""
    seen: dict = {}
    keep = lambda name: lambda _, __, output: seen.update({name: output})  # noqa: E731
    hooks = [
        layer.register_forward_hook(keep(name)) for name, layer in layers(module, spec)[1].items()
    ]
    logits = module(torch.tensor(images, dtype=next(module.parameters()).dtype).permute(0, 3, 1, 2))
    for hook in hooks:
        hook.remove()
    seen = {k: x.permute(0, 2, 3, 1) if x.ndim == 4 else x for k, x in seen.items()}
    return logits, seen


def pair(name: str, batch_norm: bool, width: float = 1.0):
    spec = dataclasses.replace(VGGS[name], batch_norm=batch_norm, width=width)
    return VGG(spec, CLASSES), torchvisions(name, batch_norm, width)


@pytest.mark.parametrize("batch_norm", [False, True], ids=["plain", "batch norm"])
@pytest.mark.parametrize("name", COLUMNS)
def test_every_layer_of_torchvisions(name, batch_norm):
    ours, theirs = pair(name, batch_norm, NARROW)
    for seed, size in enumerate([(224, 224), (64, 97), (32, 40)]):
        randomise(theirs, seed)
        images = np.random.default_rng(seed).standard_normal((2, *size, 3), np.float32)
        variables = arrays(variables_of(theirs, ours.spec))
        logits, features = ours.apply(variables, images, train=False)
        their_logits, seen = arrays(run(theirs, ours.spec, images))
        assert features.keys() == seen.keys()
        for layer, output in seen.items():
            close(features[layer], output, f"{size}, {layer}")
        close(logits, their_logits, f"{size}, logits")


@pytest.mark.parametrize("name", COLUMNS)
def test_training_with_torchvisions_batch_norm(name):
    """Three steps: outputs, gradients and the running statistics behind them."""
    ours, theirs = pair(name, True, NARROW)
    randomise(theirs, 0)
    exact = torchvisions(name, True, NARROW).double()
    exact.load_state_dict(theirs.state_dict())
    for module in (theirs, exact):
        module.train()
        for layer in module.classifier:
            if isinstance(layer, torch.nn.Dropout):
                layer.p = 0.0
    variables = arrays(variables_of(theirs, ours.spec))
    params, stats = variables["params"], variables["batch_stats"]

    @jax.jit
    def step(stats, images, factors):
        def loss(params):
            (logits, features), updated = ours.apply(
                {"params": params, "batch_stats": stats},
                images,
                train=True,
                mutable=["batch_stats"],
            )
            return (logits * factors).sum(), (logits, features, updated["batch_stats"])

        return jax.grad(loss, has_aux=True)(params)

    for seed in range(3):
        rng = np.random.default_rng(seed)
        images = rng.standard_normal((8, 64, 64, 3), np.float32)
        factors = rng.standard_normal((8, CLASSES), np.float32)
        grads, (logits, features, stats) = step(stats, images, factors)
        results = []
        for module in (theirs, exact):
            module.zero_grad()
            their_logits, seen = run(module, ours.spec, images)
            (their_logits * torch.tensor(factors)).sum().backward()
            gradients = variables_of(module, ours.spec, read=lambda x: x.grad)["params"]
            running = variables_of(module, ours.spec)["batch_stats"]
            results.append(arrays((their_logits, seen, running, gradients)))
        (their_logits, seen, running, gradients), precise = results
        close(logits, their_logits, "logits", precise[0])
        for layer, output in seen.items():
            close(features[layer], output, layer, precise[1][layer])
        for layer, statistics in running.items():
            for part, value in statistics.items():
                close(stats[layer][part], value, f"{layer}, {part}", precise[2][layer][part])
        for layer, gradient in gradients.items():
            for part, value in gradient.items():
                if part == "bias" and f"{layer}_bn" in gradients:
                    continue  # truly zero: batch norm takes the bias away
                what = f"gradient of {layer}, {part}"
                close(grads[layer][part], value, what, precise[3][layer][part])


def test_torchvisions_vgg16_at_its_published_size():
    ours, theirs = pair("16", True)
    randomise(theirs, 0)
    images = np.random.default_rng(0).standard_normal((1, 224, 224, 3), np.float32)
    logits, features = ours.apply(arrays(variables_of(theirs, ours.spec)), images, train=False)
    with torch.no_grad():
        their_logits, seen = arrays(run(theirs, ours.spec, images))
        exact_logits, exact = arrays(run(theirs.double(), ours.spec, images))
    for layer, output in seen.items():
        close(features[layer], output, layer, exact[layer])
    close(logits, their_logits, "logits", exact_logits)


@pytest.mark.parametrize("batch_norm", [False, True], ids=["plain", "batch norm"])
@pytest.mark.parametrize("name", COLUMNS)
def test_torchvisions_published_sizes_have_all_names_and_shapes(name, batch_norm):
    with torch.device("meta"):
        ours, theirs = pair(name, batch_norm)
    init = functools.partial(ours.init, train=False)
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    expected = jax.tree.map(lambda x: x.shape, jax.eval_shape(init, jax.random.key(0), image))
    found = jax.tree.map(lambda x: tuple(x.shape), variables_of(theirs, ours.spec))
    assert found == expected


KERAS_NAMES = {"fc1": "fc6", "fc2": "fc7", "predictions": "logits"}


def our_name(keras_name: str) -> str:
    """block3_conv2 -> conv3_2, block3_pool -> pool3, fc1 -> fc6."""
    found = re.fullmatch(r"block(\d)_(conv|pool)(\d?)", keras_name)
    if not found:
        return KERAS_NAMES[keras_name]
    stage, kind, number = found.groups()
    return kind + stage + (f"_{number}" if number else "")


@pytest.mark.parametrize("name, size, grid", [("16", (224, 224), 7), ("19", (67, 96), 0)])
def test_every_layer_of_keras(monkeypatch, name, size, grid):
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    keras = pytest.importorskip("keras")

    def network(dtype):
        keras.config.set_dtype_policy(dtype)
        return getattr(keras.applications, f"VGG{name}")(
            weights=None, input_shape=(*size, 3), classes=CLASSES, classifier_activation=None
        )

    def outputs(network):
        layers = {our_name(x.name): x.output for x in network.layers[1:] if x.name != "flatten"}
        return keras.Model(network.input, layers).predict(images, verbose=0)

    rng = np.random.default_rng(0)
    images = rng.standard_normal((1, *size, 3), np.float32)
    theirs, params = network("float32"), {}
    for layer in theirs.layers:
        if layer.weights:
            shape = layer.kernel.shape
            kernel = (
                rng.standard_normal(shape, np.float32) * np.float32(2 / np.prod(shape[:-1])) ** 0.5
            )
            bias = 0.3 * rng.standard_normal(shape[-1:], np.float32)
            layer.set_weights([kernel, bias])
            params[our_name(layer.name)] = {"kernel": kernel, "bias": bias}
    ours = VGG(dataclasses.replace(VGGS[name], grid=grid), CLASSES)
    logits, features = ours.apply({"params": params}, images, train=False)
    seen, precise = outputs(theirs), network("float64")
    precise.set_weights(theirs.get_weights())
    exact = outputs(precise)
    keras.config.set_dtype_policy("float32")
    assert seen.keys() == features.keys() | {"logits"}
    for layer, output in seen.items():
        close({**features, "logits": logits}[layer], output, layer, exact[layer])


def test_keras_reads_what_is_written(monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    keras = pytest.importorskip("keras")

    def make():
        return keras.applications.VGG16(weights=None, input_shape=(32, 32, 3), classes=5)

    theirs, again = make(), make()
    theirs.save_weights(tmp_path / "there.weights.h5")
    model, variables = pretrained.load("vgg", tmp_path / "there.weights.h5")
    pretrained.save(model, variables, tmp_path / "ours.h5")
    again.load_weights(tmp_path / "ours.h5")
    for first, second in zip(theirs.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(first, second)
