"""Makes torchvision importable beside a torch that it was not built for.

Its wheel on PyPI belongs to torch with CUDA. Beside torch for the CPU its compiled operators are
left out, and its import fails for want of two that VGG has no use for; so does then that of
transformers and diffusers, which look for it. They are declared here, before any test is imported.
"""

from __future__ import annotations

import importlib
import importlib.util


def declare_operators() -> None:
    import torch

    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor boxes, Tensor scores, float threshold) -> Tensor")
        importlib.import_module("torchvision")
        KEPT.append(library)  # what it declares ends with it


KEPT: list[object] = []
if all(importlib.util.find_spec(name) for name in ("torch", "torchvision")):
    declare_operators()
