"""Inception against torch-fidelity's, which computes FID: random weights, every feature."""

from __future__ import annotations

import flax.traverse_util
import jax
import numpy as np
import pytest

from tests.models.parameters import count
from vision_lang.models.inception import SIDE, Inception, resize

torch = pytest.importorskip("torch")
fidelity = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
from tests.parity.mapping import close  # noqa: E402

pytestmark = pytest.mark.parity

NAMES = fidelity.FeatureExtractorInceptionV3.get_provided_features_list()
THEIRS = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}


@pytest.fixture(scope="module")
def theirs():
    """Their network without the published weights, which its constructor would load."""
    kind = fidelity.FeatureExtractorInceptionV3
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fidelity, "load_state_dict_from_url", lambda *_, **__: None)
        patch.setattr(kind, "load_state_dict", lambda *_: None)
        return kind("inception", list(NAMES))


@pytest.fixture(scope="module")
def expected():
    """Shapes of our variables."""
    return jax.eval_shape(Inception().init, jax.random.key(0), np.zeros((1, 32, 32, 3), np.uint8))


def randomise(module, seed: int) -> None:
    """Draws every parameter and every running statistic; signals keep their size."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if tensor.ndim > 1:
                tensor.normal_(generator=generator).mul_((2 / tensor[0].numel()) ** 0.5)
            elif name.endswith("running_var"):
                tensor.uniform_(0.5, 2, generator=generator)
            elif tensor.ndim == 1:
                scale = float(name.endswith("bn.weight"))
                tensor.normal_(generator=generator).mul_(0.3).add_(scale)


def variables_of(module, expected):
    """Our variables of the shapes of `expected` from their network, of which nothing is left."""
    state = {k: v for k, v in module.state_dict().items() if not k.endswith("num_batches_tracked")}
    found = {}
    for path, leaf in flax.traverse_util.flatten_dict(expected).items():
        tensor = state.pop(".".join((*path[1:-1], THEIRS[path[-1]])))
        if path[-1] == "kernel":
            tensor = tensor.permute(*range(tensor.ndim)[2:], 1, 0)
        assert tensor.shape == leaf.shape, path
        found[path] = tensor.numpy().copy()
    assert not state, state.keys()
    return flax.traverse_util.unflatten_dict(found)


def drawn(size):
    return np.random.default_rng(size).integers(0, 256, (2, *size, 3)).astype(np.uint8)


def nchw(pictures):
    return torch.tensor(pictures).permute(0, 3, 1, 2)


@pytest.mark.parametrize("size", [(299, 299), (32, 32), (57, 331)], ids=str)
def test_every_feature(theirs, expected, size):
    """The error is at most 3e-6 of the feature (root mean squares)."""
    randomise(theirs, size[0])
    variables = variables_of(theirs, expected)
    pictures = drawn(size)
    ours = jax.jit(Inception().apply)(variables, pictures)
    features = dict(zip(NAMES, theirs(nchw(pictures)), strict=True))
    assert ours.keys() == features.keys()
    for name, feature in features.items():
        close(ours[name], feature, name)


@pytest.mark.parametrize("size", [(299, 299), (32, 32), (57, 101), (403, 330), (1, 600)], ids=str)
def test_resizing(size):
    pictures = drawn(size)
    theirs = fidelity.interpolate_bilinear_2d_like_tensorflow1x(
        nchw(pictures).float(), size=(SIDE, SIDE), align_corners=False
    )
    np.testing.assert_array_equal(resize(pictures), theirs.permute(0, 2, 3, 1))


def test_number_of_parameters(theirs, expected):
    assert count(expected["params"]) == sum(p.numel() for p in theirs.parameters())
