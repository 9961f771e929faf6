"""Sampling: 30 steps of DDIM with guidance, from tokens to uint8 pictures, against the loop that
diffusers' pipelines run: both conditions in one batch, the text encoded once, the scheduler's step.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from experiments.speed import ours, peers, unet
from experiments.speed.case import OURS, Case, Contest, Options
from experiments.speed.unet import SMALL, Size, differences

STEPS, GUIDANCE = 30, 3.0


def rows(options: Options) -> int:
    """Pictures that are drawn together."""
    return options.size(cpu=16, cuda=256, small=2)


def tokens(size: Size, count: int) -> np.ndarray:
    """Random texts [N, L]."""
    shape = (count, size.length)
    return np.random.default_rng(1).integers(2, size.vocabulary, shape).astype(np.int32)


def _task(size: Size, options: Options) -> tuple[Any, Any]:
    """Our task, and the config."""
    from vision_lang import tasks

    ours.set_up(options)
    config = unet.config(size, options)
    about = ours.facts(vocabulary=size.vocabulary, length=size.length)
    return tasks.entry(config).make(config, about), config


def _ours(options: Options, size: Size) -> Contest:
    """The call that `generate` and the evaluators make."""
    import jax

    from vision_lang.evaluators.drawing import drawer
    from vision_lang.tasks.diffusion import Sampling
    from vision_lang.training import parallel

    size, count = size.tried(options), rows(options)
    task, config = _task(size, options)
    way = parallel.make(config.parallel)
    sampling = Sampling(**config.sampling)
    draw = drawer(task, way, sampling, 0, count // way.devices)
    variables = way.place_state(jax.jit(task.init)(jax.random.key(0)))
    texts, number = tokens(size, count), np.arange(count, dtype=np.int32)
    mask, label = np.ones(texts.shape, bool), np.zeros(count, np.int32)

    def unit() -> None:
        for pictures in draw(variables, texts, mask, label, number):
            assert pictures.shape == (count, size.side, size.side, 3)

    flops = count * 2 * STEPS * unet.hand(size)
    parameters = sum(x.size for x in jax.tree.leaves(variables))
    return Contest(unit, {"parameters": parameters}, {"hand": flops})


def loop(made: Any, texts: Any, null: Any, x: Any, steps: int) -> Any:
    """Pictures from noise x [B, C, H, W]."""
    import diffusers
    import torch  # noqa: TID251

    scheduler = diffusers.DDIMScheduler(
        **unet.BETAS, clip_sample=False, timestep_spacing="trailing"
    )
    scheduler.set_timesteps(steps, device=x.device)
    context = made["text"](torch.cat([null, texts])).last_hidden_state
    for t in scheduler.timesteps:
        noise = made["unet"](torch.cat([x, x]), t, context).sample
        without, with_text = noise.float().chunk(2)
        guided = without + GUIDANCE * (with_text - without)
        x = scheduler.step(guided, t, x).prev_sample
    return x


def _peer(options: Options, compiled: bool, last: bool, size: Size) -> Contest:
    torch = peers.set_up(options)
    size, count = size.tried(options), rows(options)
    made = {name: network.eval() for name, network in unet.networks(size).items()}
    for network in made.values():
        network.to(options.device)
        if last:
            network.to(memory_format=torch.channels_last)
    parameters = sum(p.numel() for network in made.values() for p in network.parameters())
    if compiled:
        made = {name: torch.compile(network) for name, network in made.items()}
    texts = torch.tensor(tokens(size, count)).long()
    null = torch.zeros_like(texts)

    def unit() -> None:
        with torch.inference_mode(), peers.precision(options):
            of = {"device": options.device}
            x = torch.randn(count, size.channels, size.side, size.side, **of)
            if last:
                x = x.contiguous(memory_format=torch.channels_last)
            x = loop(made, texts.to(options.device), null.to(options.device), x, STEPS)
            pictures = ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
            pictures.permute(0, 2, 3, 1).cpu().numpy()

    return Contest(unit, {"parameters": parameters})


def agree(options: Options, size: Size) -> dict[str, float]:
    """The pictures of 25 steps (diffusers then has our times) from the same weights and noise:
    the largest difference, relative to the largest entry."""
    torch = peers.set_up(options)
    import jax

    from vision_lang import keys as random_keys
    from vision_lang.diffusion import samplers
    from vision_lang.tasks.diffusion import Sampling

    size = size.tried(options)
    task, config = _task(size, options)
    made = {name: network.eval() for name, network in unet.networks(size).items()}
    found = unet.saved(made, options.scratch)
    params = {"unet": found["unet"].variables["params"]}
    params["text_encoder"] = task.init(jax.random.key(0))["params"]["text_encoder"]
    read = jax.tree.leaves_with_path(found["text"].variables["params"])
    assert len(read) == len(jax.tree.leaves(params["text_encoder"]))
    params["text_encoder"] = _as(params["text_encoder"], read)
    sampling = Sampling(**{**config.sampling, "steps": 25})
    texts, keys = tokens(size, 2), jax.random.split(jax.random.key(3), 2)
    condition = task.make_condition(texts, np.ones(texts.shape, bool), np.zeros(2, np.int32))
    drawn = task.sample({"params": params}, condition, keys, sampling)
    noise_keys = random_keys.named(keys, "noise")
    x = samplers.initial_noise(noise_keys, task.shape, task.levels(sampling))
    null = np.tile(task.conditioning.null_tokens, (2, 1))
    with torch.inference_mode():
        theirs = loop(
            made,
            torch.tensor(texts).long(),
            torch.tensor(null).long(),
            torch.tensor(np.array(x)).permute(0, 3, 1, 2),
            25,
        ).permute(0, 2, 3, 1)
    largest = float(theirs.abs().max())
    apart = float(np.abs(np.asarray(drawn) - theirs.numpy()).max())
    return differences(pictures=(largest + apart, largest))


def _as(tree: Any, read: Any) -> Any:
    """The arrays of `read` in a tree whose paths end like theirs."""
    import jax

    names = {jax.tree_util.keystr(path): leaf for path, leaf in read}

    def leaf(path, old):
        name = jax.tree_util.keystr(path)
        (new,) = [x for known, x in names.items() if known.endswith(name)]
        assert new.shape == old.shape, name
        return new

    return jax.tree_util.tree_map_with_path(leaf, tree)


CASES = {
    "sampling": Case(
        "30 steps of DDIM with guidance, whole call, 16 pictures of unet_small",
        {
            OURS: functools.partial(_ours, size=SMALL),
            **peers.sides(functools.partial(_peer, size=SMALL)),
        },
        functools.partial(agree, size=SMALL),
        0.7,
    ),
}
