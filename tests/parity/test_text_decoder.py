"""TextDecoder against transformers' GPT2LMHeadModel, decoding against its `generate`: random
weights that decide clearly, with and without cross-attention, token for token."""

from __future__ import annotations

import functools

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vision_lang import decoding
from vision_lang.decoding import Rules
from vision_lang.models.text_decoder import (
    TEXT_DECODERS,
    DecoderSpec,
    TextDecoder,
    empty_cache,
    next_token,
)

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.parity

SPEC = DecoderSpec(width=24, layers=3, heads=3)
VOCABULARY, POSITIONS, PLACES = 30, 40, 6
EOS, PAD = 1, 2  # theirs fills with EOS where the padding token is 0
LENGTH, ROWS = 14, 16  # of what is generated; texts of a batch
SEEDS = (0, 1, 2)


def theirs_like(decoder: TextDecoder):
    spec = decoder.spec
    config = transformers.GPT2Config(
        vocab_size=decoder.vocab_size,
        n_positions=decoder.max_length,
        n_embd=spec.width,
        n_layer=spec.layers,
        n_head=spec.heads,
        add_cross_attention=decoder.crossing,
        bos_token_id=0,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )
    return transformers.GPT2LMHeadModel(config).eval()


def our_parameters(module, decoder: TextDecoder) -> dict:
    """Their parameters under our names, which are theirs: nothing is transposed or split."""
    features = None
    if decoder.crossing:
        features = jax.ShapeDtypeStruct((1, PLACES, decoder.spec.width), jnp.float32)
    tokens = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    expected = jax.eval_shape(decoder.init, jax.random.key(0), tokens, features=features)["params"]
    leaves = flax.traverse_util.flatten_dict(expected, sep="/")
    found = {}
    for name, tensor in module.named_parameters():  # the tied lm_head is named once, as wte
        stem, leaf = name.removeprefix("transformer.").replace(".", "/").rsplit("/", 1)
        stem = stem.replace("h/", "h_", 1) if stem.startswith("h/") else stem
        if leaf == "weight":
            leaf = next(x for x in ("kernel", "scale", "embedding") if f"{stem}/{x}" in leaves)
        assert leaves[f"{stem}/{leaf}"].shape == tensor.shape, name
        found[f"{stem}/{leaf}"] = tensor
    assert found.keys() == leaves.keys(), leaves.keys() ^ found.keys()
    if next(module.parameters()).is_meta:  # names and shapes are all there is
        return {}
    arrays = {name: tensor.detach().numpy() for name, tensor in found.items()}
    return flax.traverse_util.unflatten_dict(arrays, sep="/")


def randomise(module, seed: int) -> None:
    """Every parameter drawn; logits get a deviation of about 3, so that few choices are close."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.named_parameters():
            tensor.normal_(generator=generator)
            if ".ln_" in name:
                tensor.mul_(0.3).add_(float(name.endswith("weight")))
            elif name.endswith("bias"):
                tensor *= 0.3
            elif "wte" in name:
                tensor *= 3 / SPEC.width**0.5
                tensor[EOS] *= 2  # so that some texts end
            elif "wpe" not in name:
                tensor *= 1.5 / tensor.shape[0] ** 0.5


def make(crossing: bool, seed: int):
    """(our decoder and its variables, their module, features and their mask)."""
    decoder = TextDecoder(SPEC, VOCABULARY, POSITIONS, crossing=crossing)
    theirs = theirs_like(decoder)
    randomise(theirs, seed)
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(ROWS, PLACES, SPEC.width)).astype(np.float32)
    mask = np.arange(PLACES) < rng.integers(1, PLACES + 1, size=(ROWS, 1))
    attended = (features, mask) if crossing else (None, None)
    return decoder, {"params": our_parameters(theirs, decoder)}, theirs, attended


def theirs_attend(attended) -> dict:
    features, mask = attended
    if features is None:
        return {}
    return dict(
        encoder_hidden_states=torch.tensor(features),
        encoder_attention_mask=torch.tensor(mask).long(),
    )


@functools.cache
def compiled(decoder, name, prompt_length, rules, **options):
    """Decodes prompts with padding in front."""

    @jax.jit
    def decode(variables, prompt, mask, features, features_mask):
        apply, context = functools.partial(decoder.apply, variables), None
        if features is not None:
            context = apply(features, features_mask, method="read")
        cache = empty_cache(decoder, len(prompt), prompt_length + rules.length - 1)
        if prompt_length > 1:
            before = slice(None, -1)
            _, cache, _ = apply(
                prompt[:, before], cache, 0, context, mask[:, before], method="extend"
            )
        step = next_token(decoder, variables, context)
        return getattr(decoding, name)(step, cache, prompt, rules, **options)

    return decode


def prompts(seed: int, length: int):
    """Prompts [ROWS, length] and their masks; some are shorter, with padding in front."""
    rng = np.random.default_rng(seed + 100)
    mask = np.arange(length) >= rng.integers(0, length, size=(ROWS, 1))
    return np.where(mask, rng.integers(3, VOCABULARY, size=(ROWS, length)), PAD), mask


def generate(theirs, prompt, mask, attended, rules: Rules, **options):
    with torch.inference_mode():
        return theirs.generate(
            torch.tensor(prompt),
            attention_mask=torch.tensor(mask).long(),
            **theirs_attend(attended),
            max_new_tokens=rules.length,
            min_new_tokens=rules.min_length or None,
            no_repeat_ngram_size=rules.no_repeat_ngram or None,
            do_sample=False,
            return_dict_in_generate=True,
            output_scores=True,
            **options,
        )


def same_tokens(ours, lengths, theirs, start: int) -> None:
    """Both [N, at most LENGTH] behind the prompt."""
    theirs = np.asarray(theirs)[:, start:]
    padding = ((0, 0), (0, LENGTH - theirs.shape[1]))
    np.testing.assert_array_equal(ours, np.pad(theirs, padding, constant_values=PAD))
    ends = theirs == EOS
    expected = np.where(ends.any(1), ends.argmax(1) + 1, LENGTH)
    np.testing.assert_array_equal(lengths, expected)


@pytest.mark.parametrize("crossing", [False, True], ids=["alone", "cross-attention"])
def test_logits_and_hidden_states(crossing):
    for seed in SEEDS:
        decoder, variables, theirs, attended = make(crossing, seed)
        rng = np.random.default_rng(seed)
        tokens = rng.integers(VOCABULARY, size=(ROWS, 20))
        mask = np.arange(20) < rng.integers(1, 21, size=(ROWS, 1))
        logits, intermediates = jax.jit(decoder.apply)(
            variables, tokens.astype(np.int32), mask, *attended
        )
        with torch.inference_mode():
            reference = theirs(
                torch.tensor(tokens),
                attention_mask=torch.tensor(mask).long(),
                **theirs_attend(attended),
                output_hidden_states=True,
            )
        pairs = [(logits, reference.logits)]
        pairs += [
            (intermediates[f"hidden_{i}"], reference.hidden_states[i]) for i in range(SPEC.layers)
        ]
        for a, b in pairs:
            a, b = np.asarray(a, np.float64)[mask], b.numpy().astype(np.float64)[mask]
            error = np.sqrt(np.square(a - b).mean() / np.square(b).mean())
            assert error <= 3e-6, f"seed {seed}: relative error {error:.2g}"


RULES = {
    "no rule": Rules(LENGTH, EOS, PAD),
    "no pair twice": Rules(LENGTH, EOS, PAD, no_repeat_ngram=2),
    "no triple twice, and long": Rules(LENGTH, EOS, PAD, min_length=5, no_repeat_ngram=3),
}


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("prompt_length", [1, 5])
@pytest.mark.parametrize("crossing", [False, True], ids=["alone", "cross-attention"])
def test_greedy(crossing, prompt_length, name):
    lengths = []
    for seed in SEEDS:
        decoder, variables, theirs, attended = make(crossing, seed)
        prompt, mask = prompts(seed, prompt_length)
        decode = compiled(decoder, "greedy", prompt_length, RULES[name])
        ours = decode(variables, prompt.astype(np.int32), mask, *attended)
        found = generate(theirs, prompt, mask, attended, RULES[name])
        same_tokens(ours.tokens, ours.lengths, found.sequences, prompt_length)
        lengths += np.asarray(ours.lengths).tolist()
    assert min(lengths) < LENGTH, "no text ended"


BEAMS = [
    # beams, length penalty, early stopping, rule, prompt length
    (4, 1.0, False, "no rule", 1),
    (4, 1.0, True, "no rule", 1),
    (4, 1.0, "never", "no rule", 5),
    (4, 0.0, False, "no rule", 5),
    (4, 2.0, False, "no rule", 1),
    (4, 2.0, "never", "no rule", 1),
    (4, -1.0, "never", "no rule", 1),
    (4, -1.0, False, "no rule", 1),
    (2, 0.6, True, "no pair twice", 5),
    (7, 1.3, "never", "no pair twice", 1),
    (3, 0.6, False, "no triple twice, and long", 5),
]


@pytest.mark.parametrize("beams, penalty, early_stopping, name, prompt_length", BEAMS)
@pytest.mark.parametrize("crossing", [False, True], ids=["alone", "cross-attention"])
def test_beam_search(crossing, beams, penalty, early_stopping, name, prompt_length):
    lengths = []
    for seed in SEEDS:
        decoder, variables, theirs, attended = make(crossing, seed)
        prompt, mask = prompts(seed, prompt_length)
        options = dict(length_penalty=penalty, early_stopping=early_stopping)
        decode = compiled(decoder, "beam", prompt_length, RULES[name], beams=beams, **options)
        ours = decode(variables, prompt.astype(np.int32), mask, *attended)
        found = generate(
            theirs,
            prompt,
            mask,
            attended,
            RULES[name],
            num_beams=beams,
            num_return_sequences=beams,
            **options,
        )
        flat = lambda x: np.asarray(x).reshape(ROWS * beams, -1)  # noqa: E731
        same_tokens(flat(ours.tokens), flat(ours.lengths)[:, 0], found.sequences, prompt_length)
        np.testing.assert_allclose(flat(ours.scores)[:, 0], found.sequences_scores, atol=1e-4)
        lengths += np.asarray(ours.lengths).ravel().tolist()
    assert len(set(lengths)) > 1, "all texts have one length"


def test_the_published_size_has_all_names_and_shapes():
    decoder = TextDecoder(TEXT_DECODERS["gpt2"], 50257, 1024)
    with torch.device("meta"):
        theirs = theirs_like(decoder)
    our_parameters(theirs, decoder)
