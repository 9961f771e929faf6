"""The peers' side of the training cases: the usual loop in torch, in the ways that may be best.

    side                  what
    torch                 as it stands
    torch_channels_last   networks and pictures NHWC in memory
    torch_compile         torch.compile of the network
    torch_compile_last    both

Of each the optimizer is torch's fused AdamW; on a GPU all work under autocast to bfloat16, with
torch's fused attention.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

from experiments.speed.case import Contest, Options

VARIANTS = {
    "torch": (False, False),
    "torch_channels_last": (False, True),
    "torch_compile": (True, False),
    "torch_compile_last": (True, True),
}
KEPT: list[object] = []


def set_up(options: Options) -> Any:
    """Returns torch, with as many threads as ours has cores."""
    import torch  # noqa: TID251

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    declare_operators()
    return torch


def declare_operators() -> None:
    """Lets a torchvision be imported that was built for another torch: transformers, diffusers and
    torch-fidelity look for it, and none of its operators is used."""
    import torch  # noqa: TID251

    if KEPT or importlib.util.find_spec("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor boxes, Tensor scores, float threshold) -> Tensor")
        KEPT.append(library)  # what it declares ends with it
        importlib.import_module("torchvision")


def finish(options: Options) -> None:
    """Waits for what a GPU has still to do."""
    if options.device == "cuda":
        import torch  # noqa: TID251

        torch.cuda.synchronize()


def precision(options: Options) -> Any:
    """What the forward pass runs under."""
    if options.device == "cpu":
        return contextlib.nullcontext()
    import torch  # noqa: TID251

    return torch.autocast("cuda", torch.bfloat16)


def sides(build: Callable[[Options, bool, bool], Contest]) -> dict[str, Callable]:
    """The sides of a case whose builder takes (options, compiled, channels last)."""

    def side(options: Options, compiled: bool, last: bool) -> Contest:
        return build(options, compiled, last)

    return {
        name: functools.partial(side, compiled=compiled, last=last)
        for name, (compiled, last) in VARIANTS.items()
    }


def training(
    networks: Mapping[str, Any],
    loss: Callable[[Mapping[str, Any]], Any],
    options: Options,
    *,
    compiled: bool,
    last: bool,
) -> Contest:
    """The usual step: loss, backward, clipped to a norm of 1, AdamW, gradients set to None.

    Args:
      networks: by name; those without trainable parameters are not learned.
      loss: networks, compiled or not, -> the mean loss.
    """
    import torch  # noqa: TID251
    from torch.utils.flop_counter import FlopCounterMode  # noqa: TID251

    for network in networks.values():
        network.to(options.device)
        if last:
            network.to(memory_format=torch.channels_last)
    parameters = [p for n in networks.values() for p in n.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.01, fused=True)
    with FlopCounterMode(display=False) as counter:
        loss(networks).backward()
    optimizer.zero_grad(set_to_none=True)
    made = {n: torch.compile(m) if compiled else m for n, m in networks.items()}

    def unit() -> None:
        with precision(options):
            value = loss(made)
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        finish(options)

    count = sum(p.numel() for p in parameters)
    return Contest(unit, {"parameters": count}, {"torch": counter.get_total_flops()})
