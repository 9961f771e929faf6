"""Parameters of a torch library's network as our tree, random parameters, and the comparison."""

from __future__ import annotations

import re
from typing import Any

import flax.traverse_util
import numpy as np
import torch

# CLIP's modules that only group others; our tree does without them.
GROUPS = re.compile(r"^(text_model\.)?(embeddings\.|encoder\.)?|(?<=\.)mlp\.")
SIZES = (1.0, 1.0, 0.03)  # of the signals, one per seed; see `randomise`
WEIGHTS = ("kernel", "scale", "embedding")  # what torch calls `weight`


def our_parameters(module: torch.nn.Module, expected: Any) -> dict:
    """The parameters of `module` as a linen tree of the structure and shapes of `expected`.

    Names agree when '.' and '/' are both read as '_': `ff.net.0.proj.weight` of diffusers is our
    `ff_net_0_proj/kernel`. Kernels are [in, out] and [H, W, in, out] here, [out, in] and
    [out, in, H, W] there.
    """
    leaves = flax.traverse_util.flatten_dict(expected, sep="/")
    names = {name.replace("/", "_"): name for name in leaves}
    found = {}
    for name, tensor in module.state_dict().items():
        stem, leaf = GROUPS.sub("", name).replace(".", "_").rsplit("_", 1)
        ours = next(names[f"{stem}_{x}"] for x in (leaf, *WEIGHTS) if f"{stem}_{x}" in names)
        if ours.endswith("kernel"):
            tensor = tensor.permute(*range(tensor.ndim)[2:], 1, 0)
        assert tensor.shape == leaves[ours].shape, ours
        found[ours] = tensor
    assert found.keys() == leaves.keys(), leaves.keys() - found.keys()
    if next(module.parameters()).is_meta:  # names and shapes are all there is
        return {}
    return flax.traverse_util.unflatten_dict({k: np.array(v) for k, v in found.items()}, sep="/")


def randomise(module: torch.nn.Module, seed: int, size: float) -> None:
    """Draws every parameter. Signals get about `size`: small ones show the norms' epsilons."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.named_parameters():
            tensor.normal_(generator=generator)
            if "norm" in name:
                tensor.mul_(0.3).add_(float(name.endswith("weight")))
            elif name.endswith("bias"):
                tensor *= 0.3 * size
            elif "embedding.weight" in name:
                tensor *= size
            else:
                tensor *= size / tensor[0].numel() ** 0.5


def agree(ours: Any, theirs: torch.Tensor, what: str, tolerance: float = 1e-5) -> None:
    """Demands a difference of at most `tolerance` times the largest entry."""
    a, b = np.asarray(ours), theirs.detach().numpy()
    assert a.shape == b.shape, what
    difference = np.abs(a - b).max() / np.abs(b).max()
    assert difference <= tolerance, f"{what}: {difference:.2g} of the largest entry"


def rms(x) -> float:
    return float(np.sqrt((np.asarray(x, np.float64) ** 2).mean()))


def close(ours, theirs, what: str, exact=None) -> None:
    """Demands an error of at most 3e-6 of the output (root mean squares), or of ten times their
    own error in float32, given their result in float64."""
    error, size = rms(np.asarray(ours) - np.asarray(theirs)), rms(theirs)
    bound = 3e-6 * size
    if exact is not None:
        bound = max(bound, 10 * rms(np.asarray(theirs) - np.asarray(exact)))
    assert np.shape(ours) == np.shape(theirs), what
    assert error <= bound, f"{what}: {error / size:.2g} of the output, allowed {bound / size:.2g}"
