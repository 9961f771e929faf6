"""A training step of captioning, and decoding, against transformers' GPT-2.

Trained are a VGG of a quarter of the widths up to conv3_2 and a decoder that attends its map, as
configs/captioning.py has them, on 32 px and texts of 34 tokens. What is decoded are 32 tokens that
follow one, without pictures; no text ends early, and both give the same tokens from the same
weights.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any

import numpy as np

from experiments.speed import ours, peers
from experiments.speed.case import OURS, Case, Contest, Options

VOCABULARY, LENGTH, TEXT = 1000, 32, 34
STAGES = ((64,), (128,), (256, 256))
SIDE, PLACES = 32, 12  # pixels; features of a place (models.layers.position_features)


def rows(options: Options) -> int:
    """Examples in a training batch."""
    return options.size(cpu=64, cuda=256, small=2)


def gpt2(**fields: Any) -> Any:
    """transformers' decoder of the size of our `small`."""
    import transformers

    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_positions=2 * LENGTH, n_embd=256, n_layer=4, n_head=4,
        bos_token_id=0, eos_token_id=None, pad_token_id=0, **fields,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


def _train_ours(options: Options) -> Contest:
    from ml_collections import ConfigDict

    from configs import captioning

    config = captioning.get_config("decoder=small")
    config.batch_size, config.cpu_devices = rows(options), min(2, options.threads)
    config.word_weights = ConfigDict()
    config.data.text_length = TEXT
    config.model.encoder.stages = STAGES
    config.model.dtype = "bfloat16" if options.device == "cuda" else "float32"
    ours.optimizer(config)
    return ours.training(config, ours.facts(vocabulary=VOCABULARY, length=TEXT), options)


def _train_peer(options: Options, compiled: bool, last: bool) -> Contest:
    torch = peers.set_up(options)
    nn = torch.nn

    class Captioner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layers: list[Any] = []
            widths = (3, *(c // 4 for stage in STAGES for c in stage))
            ends = set(itertools.accumulate(len(stage) for stage in STAGES[:-1]))
            for i, (a, b) in enumerate(itertools.pairwise(widths), 1):
                layers += [nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU()]
                layers += [nn.MaxPool2d(2)] if i in ends else []
            self.encoder = nn.Sequential(*layers)
            self.features = nn.Linear(widths[-1], 256)
            self.position = nn.Linear(PLACES, 256, bias=False)
            self.norm = nn.LayerNorm(256)
            self.decoder = gpt2(
                add_cross_attention=True, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0
            )
            del self.decoder.transformer.wpe  # as many positions as ours
            self.decoder.transformer.wpe = nn.Embedding(TEXT, 256)

        def forward(self, x, tokens, where):
            found = self.encoder(x).flatten(2).transpose(1, 2)
            context = self.norm(self.features(found) + self.position(where))
            return self.decoder(tokens, encoder_hidden_states=context, use_cache=False).logits

    of = {"device": options.device}
    count = rows(options)
    pictures = torch.randint(256, (count, SIDE, SIDE, 3), dtype=torch.uint8, **of)
    tokens = torch.randint(VOCABULARY, (count, TEXT), **of)
    where = torch.randn((SIDE // 4) ** 2, PLACES, **of)

    def loss(made):
        x = pictures.permute(0, 3, 1, 2) / 127.5 - 1.0
        if last:
            x = x.contiguous(memory_format=torch.channels_last)
        logits = made["captioner"](x, tokens[:, :-1], where).float()
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())

    return peers.training({"captioner": Captioner()}, loss, options, compiled=compiled, last=last)


def _decode_ours(options: Options, batch: int, beams: int, weights: Any = None) -> Contest:
    """One program for the whole text: decoding.greedy or decoding.beam."""
    import jax
    import jax.numpy as jnp

    from vision_lang import decoding
    from vision_lang.models.text_decoder import (
        TEXT_DECODERS,
        TextDecoder,
        empty_cache,
        next_token,
    )

    jax.config.update("jax_default_matmul_precision", "highest")  # no TF32, as torch's default
    decoder = TextDecoder(TEXT_DECODERS["small"], VOCABULARY, 2 * LENGTH)
    variables = weights
    if weights is None:
        start = jnp.zeros((1, 1), jnp.int32)
        variables = jax.jit(decoder.init)(jax.random.key(0), start)
    rules = decoding.Rules(LENGTH, eos_id=-1, pad_id=0)
    texts = prompt(batch)

    @jax.jit
    def decode(variables, texts):
        step, cache = next_token(decoder, variables), empty_cache(decoder, batch, LENGTH)
        if beams == 1:
            found = decoding.greedy(step, cache, texts, rules)
            return found.tokens, found.log_probs
        best = decoding.beam(step, cache, texts, rules, beams=beams)
        return best.tokens[:, 0], best.scores[:, 0]

    def unit() -> None:
        tokens, scores = decode(variables, texts)
        unit.found = np.asarray(tokens), np.asarray(scores)  # type: ignore[attr-defined]

    parameters = sum(x.size for x in jax.tree.leaves(variables))
    return Contest(unit, {"parameters": parameters})


def prompt(batch: int) -> np.ndarray:
    """One token for each text."""
    return np.arange(batch, dtype=np.int32)[:, None] % VOCABULARY


def _decode_peer(
    options: Options, batch: int, beams: int, static: bool = False, network: Any = None, **more: Any
) -> Contest:
    """`generate`, its cache growing, or of a fixed size and the forward pass compiled."""
    torch = peers.set_up(options)
    network = (network or gpt2()).eval().to(options.device)
    ids = torch.tensor(prompt(batch)).long().to(options.device)
    how: dict[str, Any] = dict(max_new_tokens=LENGTH, do_sample=False, num_beams=beams) | more
    if static:
        how["cache_implementation"] = "static"
        network.forward = torch.compile(network.forward)

    def unit() -> None:
        with torch.inference_mode():
            found = network.generate(ids, attention_mask=torch.ones_like(ids), **how)
        scores = None
        if how.get("return_dict_in_generate"):
            found, scores = found.sequences, found.sequences_scores.cpu().numpy()
        unit.found = found[:, 1:].cpu().numpy(), scores  # type: ignore[attr-defined]

    return Contest(unit, {"parameters": sum(p.numel() for p in network.parameters())})


def agree(options: Options, batch: int, beams: int) -> dict[str, float]:
    """From the same weights, the share of texts that are not the same, and how far the scores of
    beams are apart; raises where that is more than rounding."""
    torch = peers.set_up(options)
    from vision_lang import pretrained

    theirs = gpt2().eval()
    with torch.no_grad():
        theirs.transformer.wpe.weight *= 50  # else a text repeats one token
    theirs.save_pretrained(f"{options.scratch}/gpt2")
    loaded: Any = pretrained.load("gpt2", f"{options.scratch}/gpt2")
    scored = dict(return_dict_in_generate=True, output_scores=True) if beams > 1 else {}
    sides = (
        _decode_ours(options, batch, beams, loaded.variables),
        _decode_peer(options, batch, beams, network=theirs, **scored),
    )
    for side in sides:
        side.unit()
    first, second = (side.unit.found for side in sides)  # type: ignore[attr-defined]
    assert len(set(first[0][0].tolist())) > LENGTH // 4, "a text that repeats itself proves little"
    differ = (first[0] != second[0]).any(axis=1)
    assert beams > 1 or not differ.any(), "other tokens"
    apart = 0.0
    if beams > 1:  # two may be so near to each other that rounding decides between them
        apart = float(np.abs(first[1] / second[1] - 1).max())
        assert apart < 1e-4, f"scores differ by {apart:.2g}"
    return {"texts": float(differ.mean()), "scores": apart}


def _decoding(what: str, batch: int, beams: int, target: float) -> Case:
    how = {"batch": batch, "beams": beams}
    return Case(
        what,
        {
            OURS: functools.partial(_decode_ours, **how),
            "transformers": functools.partial(_decode_peer, **how),
            "transformers_static": functools.partial(_decode_peer, static=True, **how),
        },
        functools.partial(agree, **how),
        target,
    )


CASES = {
    "captioning": Case(
        "training step, captions of 34 tokens for 32 px, batch 64",
        {OURS: _train_ours, **peers.sides(_train_peer)},
    ),
    "greedy": _decoding("greedy decoding, 32 texts of 32 tokens", 32, 1, 0.75),
    "greedy_one": _decoding("greedy decoding, one text of 32 tokens", 1, 1, 0.4),
    "beam": _decoding("beam search with 4 beams, 32 texts of 32 tokens", 32, 4, 0.6),
}
