"""Decoding against twins in Python, brute force and exact probabilities, on a network whose scores
depend on the whole history through its cache; and on the text decoder. tests/parity compares beam
search with transformers' `generate`."""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from tests.models.parameters import random_parameters
from vision_lang import decoding
from vision_lang.decoding import Rules
from vision_lang.errors import InputError
from vision_lang.models.text_decoder import DecoderSpec, TextDecoder, empty_cache, next_token

EOS, PAD = 1, 0


class Network:
    """A recurrent network: its cache is a state that every token so far has changed."""

    def __init__(self, vocabulary: int, seed: int, peak: float = 3.0, width: int = 6):
        rng = np.random.default_rng(seed)
        draw: Any = lambda *shape: np.float32(rng.normal(size=shape))  # noqa: E731
        self.turn, self.embed = draw(width, width), draw(vocabulary, width)
        self.read, self.place = draw(width, vocabulary), draw(99, width)
        self.read *= np.float32(peak / width**0.5)

    def __call__(self, cache, tokens, position):
        state = jnp.tanh(
            cache @ self.turn + jnp.asarray(self.embed)[tokens] + jnp.asarray(self.place)[position]
        )
        return state @ self.read, state

    def cache(self, prompt):
        """All of the prompts but their last tokens."""
        state = np.zeros((len(prompt), len(self.turn)), np.float32)
        for position in range(prompt.shape[1] - 1):
            state = np.tanh(
                state @ self.turn + self.embed[prompt[:, position]] + self.place[position]
            )
        return state

    def log_probs(self, text):
        """Of the token behind a text (a tuple), [V]."""
        cache = self.cache(np.array([[*text, 0]]))
        logits = (cache @ self.read)[0].astype(np.float64)
        return logits - scipy.special.logsumexp(logits)


def run(name, network, prompt, *args, **options):
    """A decoding function of `vision_lang.decoding`, compiled, as NumPy arrays."""
    prompt = np.asarray(prompt, np.int32)
    decode = functools.partial(getattr(decoding, name), network)
    found = jax.jit(lambda c, p: decode(c, p, *args, **options))(network.cache(prompt), prompt)
    return jax.tree.map(np.asarray, found)


def allowed(network, text, start, rules):
    """log_probs with minus infinity for what the rules forbid behind a text."""
    found, n = network.log_probs(text), rules.no_repeat_ngram
    if n:
        for at in range(len(text) - n + 1):
            if text[at : at + n - 1] == text[len(text) - n + 1 :]:
                found[text[at + n - 1]] = -np.inf
    if len(text) - start < rules.min_length:
        found[rules.eos_id] = -np.inf
    return found


def greedy_twin(network, prompt, rules):
    text = tuple(prompt)
    while len(text) - len(prompt) < rules.length and EOS not in text[len(prompt) :]:
        text += (int(allowed(network, text, len(prompt), rules).argmax()),)
    return text[len(prompt) :]


def beam_twin(network, prompt, rules, beams, penalty, early_stopping):
    """[(score, text)], best first."""
    start = len(prompt)
    running, found = [(0.0, tuple(prompt))], []
    for length in range(1, rules.length + 1):
        nexts = [
            (score + gain, (*text, token))
            for score, text in running
            for token, gain in enumerate(allowed(network, text, start, rules))
        ]
        nexts = sorted(nexts, reverse=True)[: 2 * beams]
        ends = [text[-1] == EOS or length == rules.length for _, text in nexts]
        found += [
            (score / length**penalty, text)
            for (score, text), end in list(zip(nexts, ends, strict=True))[:beams]
            if end and score > -np.inf
        ]
        found = sorted(found, reverse=True)[:beams]
        running = [x for x, end in zip(nexts, ends, strict=True) if not end][:beams]
        if len(found) == beams and running:
            at = rules.length if early_stopping == "never" and penalty > 0 else length
            if early_stopping is True or running[0][0] / at**penalty <= found[-1][0]:
                break
    return [(score, text[start:]) for score, text in found]


def texts(tokens, lengths):
    return [tuple(row[:length].tolist()) for row, length in zip(tokens, lengths, strict=True)]


RULES = {
    "none": Rules(9, EOS, PAD),
    "no token twice": Rules(9, EOS, PAD, no_repeat_ngram=1),
    "no pair twice": Rules(9, EOS, PAD, no_repeat_ngram=2),
    "no triple twice, and long": Rules(9, EOS, PAD, min_length=6, no_repeat_ngram=3),
}
PROMPTS = np.random.default_rng(0).integers(2, 12, size=(8, 3))


@pytest.mark.parametrize("name", RULES)
def test_greedy_takes_the_likeliest_token_that_the_rules_allow(name):
    rules, network = RULES[name], Network(12, 2)
    found = run("greedy", network, PROMPTS, rules)
    twins = [greedy_twin(network, prompt, rules) for prompt in PROMPTS.tolist()]
    assert texts(found.tokens, found.lengths) == twins
    free = [greedy_twin(network, prompt, RULES["none"]) for prompt in PROMPTS.tolist()]
    assert name == "none" or twins != free, "the rule changed nothing"
    assert len(set(found.lengths)) > 1 or name == "no triple twice, and long"


@pytest.mark.parametrize(
    "name, penalty, early_stopping",
    [
        ("none", 1.0, False),
        ("none", 1.0, True),
        ("none", 1.0, "never"),
        ("none", 2.5, False),
        ("none", -0.7, "never"),
        ("no token twice", 0.0, False),
        ("no pair twice", 1.5, "never"),
        ("no triple twice, and long", 1.0, True),
    ],
)
def test_beam_search_is_its_twin(name, penalty, early_stopping):
    rules, network = RULES[name], Network(12, 2)
    options = dict(length_penalty=penalty, early_stopping=early_stopping)
    found = run("beam", network, PROMPTS, rules, beams=3, **options)
    for row, prompt in enumerate(PROMPTS.tolist()):
        twin = beam_twin(network, prompt, rules, 3, penalty, early_stopping)
        assert texts(found.tokens[row], found.lengths[row]) == [text for _, text in twin]
        np.testing.assert_allclose(found.scores[row], [score for score, _ in twin], rtol=1e-5)
        expected = found.scores[row] * found.lengths[row] ** penalty
        np.testing.assert_allclose(found.log_probs[row], expected, rtol=1e-5)


def test_one_beam_that_stops_early_is_greedy():
    network, rules = Network(12, 2), Rules(12, EOS, PAD)
    one = run("beam", network, PROMPTS, rules, beams=1, early_stopping=True)
    greedy = run("greedy", network, PROMPTS, rules)
    np.testing.assert_array_equal(one.tokens[:, 0], greedy.tokens)
    np.testing.assert_array_equal(one.lengths[:, 0], greedy.lengths)
    np.testing.assert_allclose(one.log_probs[:, 0], greedy.log_probs, rtol=1e-5)
    assert 1 < greedy.lengths.min() < greedy.lengths.max()


def every_text(network, prompt, rules, vocabulary):
    """{text: log-probability} of all that may come behind the prompt."""
    found = {}
    others = [token for token in range(vocabulary) if token != EOS]
    for length in range(1, rules.length + 1):
        for front in itertools.product(others, repeat=length - 1):
            for last in range(vocabulary) if length == rules.length else [EOS]:
                text = (*front, last)
                gains = [
                    network.log_probs((*prompt, *text[:i]))[token] for i, token in enumerate(text)
                ]
                found[text] = sum(gains)
    return found


@pytest.mark.parametrize(
    "penalty, early_stopping",
    [(0.0, False), (1.0, True), (2.0, "never"), (-1.0, "never"), (-1.0, True)],
)
def test_a_beam_that_is_wide_enough_finds_every_text(penalty, early_stopping):
    network, rules, prompts = Network(3, 4), Rules(4, EOS, PAD), [[2, 0], [0, 0]]
    options = dict(length_penalty=penalty, early_stopping=early_stopping)
    found = run("beam", network, prompts, rules, beams=33, **options)
    for row, prompt in enumerate(prompts):
        every = every_text(network, prompt, rules, 3)
        assert len(every) == 31 and math.isclose(sum(map(math.exp, every.values())), 1.0)
        scores = {text: value / len(text) ** penalty for text, value in every.items()}
        order = sorted(every, key=lambda text: -scores[text])
        assert texts(found.tokens[row], found.lengths[row]) == [*order, (), ()]
        np.testing.assert_allclose(found.scores[row, :31], [scores[x] for x in order], rtol=1e-5)
        np.testing.assert_allclose(found.log_probs[row, :31], [every[x] for x in order], rtol=1e-5)
        assert (found.scores[row, 31:] == -np.inf).all()
        assert (found.tokens[row, 31:] == PAD).all()


def test_a_wider_beam_finds_no_worse_text():
    prompts = np.random.default_rng(1).integers(2, 4, size=(40, 3))
    best = []
    for beams in (1, 2, 8, 4**3 * 3):
        rules = Rules(4, EOS, PAD)
        options = dict(beams=beams, early_stopping="never", length_penalty=0.0)
        best.append(run("beam", Network(4, 5, peak=1.0), prompts, rules, **options).scores[:, 0])
    assert (np.diff(best, axis=0) >= -1e-6).all()
    assert (best[-1] - best[0] > 1e-3).any(), "one beam found all: the test shows nothing"


@pytest.mark.parametrize("name", ["greedy", "beam", "sample"])
def test_nothing_follows_the_end_but_padding(name):
    network, rules = Network(12, 2, peak=1.5), Rules(15, EOS, 7)
    options = {
        "greedy": {},
        "beam": dict(beams=3),
        "sample": dict(keys=jax.random.split(jax.random.key(0), len(PROMPTS))),
    }[name]
    found = run(name, network, PROMPTS, rules, **options)
    tokens, lengths = found.tokens.reshape(-1, 15), found.lengths.reshape(-1)
    place = np.arange(15)
    assert (tokens[place >= lengths[:, None]] == 7).all()
    assert (tokens[place < lengths[:, None] - 1] != EOS).all()
    last = tokens[np.arange(len(tokens)), lengths - 1]
    np.testing.assert_array_equal(last == EOS, lengths < 15 if name != "sample" else last == EOS)
    assert lengths.min() < lengths.max()


def test_without_an_end_all_texts_have_full_length():
    found = run("greedy", Network(12, 2), PROMPTS, Rules(15, -1, PAD))
    assert (found.lengths == 15).all() and (found.tokens == EOS).any()


@pytest.mark.parametrize("name", ["greedy", "beam"])
def test_the_loop_stops_when_every_text_has_ended(name):
    calls = []

    class Counting(Network):
        def __call__(self, cache, tokens, position):
            jax.debug.callback(lambda p: calls.append(int(p)), position)
            return super().__call__(cache, tokens, position)

    options = dict(beams=1, early_stopping=True) if name == "beam" else {}
    found = run(name, Counting(12, 3), PROMPTS, Rules(90, EOS, PAD), **options)
    jax.effects_barrier()
    start = PROMPTS.shape[1] - 1
    assert found.lengths.max() < 90
    assert sorted(calls) == list(range(start, start + found.lengths.max()))


def test_draws_have_the_probabilities_of_the_network():
    network, draws = Network(12, 6), 20_000
    prompts = np.repeat(PROMPTS[:1], draws, axis=0)
    keys = jax.random.split(jax.random.key(0), draws)
    options = dict(temperature=0.8, top_k=9, top_p=0.95)
    found = run("sample", network, prompts, Rules(2, EOS, PAD), keys, **options)

    def check(tokens, text):
        """Chi-square of the tokens behind a text."""
        expected = np.exp(restrict_twin(network.log_probs(text), **options))
        expected = expected / expected.sum() * len(tokens)
        seen = np.bincount(tokens, minlength=12)
        assert (seen[expected == 0] == 0).all()
        likely = expected > 5
        assert scipy.stats.chisquare(seen[likely], expected[likely], sum_check=False).pvalue > 0.01
        assert 2 < likely.sum() < 12

    prompt = tuple(PROMPTS[0].tolist())
    check(found.tokens[:, 0], prompt)
    first = np.bincount(found.tokens[:, 0][found.tokens[:, 0] != EOS]).argmax()
    check(found.tokens[found.tokens[:, 0] == first, 1], (*prompt, int(first)))


def restrict_twin(logits, temperature=1.0, top_k=0, top_p=1.0):
    logits = logits / temperature
    order = np.argsort(-logits, kind="stable")
    order = order[: top_k or None]
    shares = np.exp(logits[order] - logits.max())
    shares /= shares.sum()
    kept, mass = [], 0.0
    for token, share in zip(order, shares, strict=True):
        if mass >= top_p:
            break
        kept.append(token)
        mass += share
    return np.where(np.isin(np.arange(len(logits)), kept), logits, -np.inf)


@pytest.mark.parametrize("temperature", [1.0, 0.3, 2.0])
@pytest.mark.parametrize("top_k", [0, 1, 5, 50])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.4, 1e-6])
def test_the_restricted_set_is_its_twins(temperature, top_k, top_p):
    logits = np.random.default_rng(0).normal(size=(30, 20)).astype(np.float32) * 2
    found = decoding.restrict(jnp.asarray(logits), temperature, top_k, top_p)
    twin = [restrict_twin(row.astype(np.float64), temperature, top_k, top_p) for row in logits]
    np.testing.assert_allclose(found, twin, rtol=1e-6)


def test_equally_likely_tokens_remain_together():
    logits = jnp.array([2.0, 1.0, 1.0, 0.0])
    for options in (dict(top_k=2), dict(top_p=0.7)):
        np.testing.assert_array_equal(
            jnp.isfinite(decoding.restrict(logits, **options)), [True, True, True, False]
        )


def test_a_row_depends_on_its_own_key_alone():
    network, rules = Network(12, 6, peak=1.0), Rules(10, EOS, PAD)
    keys = jax.random.split(jax.random.key(3), len(PROMPTS))
    together = run("sample", network, PROMPTS, rules, keys, top_p=0.9)
    for rows in ([7, 0, 5],):
        some = run("sample", network, PROMPTS[rows], rules, keys[np.array(rows)], top_p=0.9)
        np.testing.assert_array_equal(some.tokens, together.tokens[rows])
    same = run("sample", network, PROMPTS[[0] * 8], rules, keys)
    assert len({tuple(row) for row in same.tokens.tolist()}) > 4


# The text decoder, with prompts of three tokens and a context.
DECODER = TextDecoder(DecoderSpec(width=16, layers=1, heads=2), 12, 20, crossing=True)
FEATURES = np.random.default_rng(2).normal(size=(8, 4, 5)).astype(np.float32)
VARIABLES = {"params": random_parameters(DECODER, PROMPTS.astype(np.int32), features=FEATURES)}


@pytest.mark.parametrize("name", ["greedy", "beam", "sample"])
def test_log_probabilities_are_those_of_the_text_decoder(name):
    rules, start = Rules(12, EOS, PAD, min_length=2, no_repeat_ngram=2), PROMPTS.shape[1]
    options = {
        "greedy": {},
        "beam": dict(beams=3, early_stopping="never"),
        "sample": dict(keys=jax.random.split(jax.random.key(0), 8), temperature=2.0, top_k=8),
    }[name]

    @jax.jit
    def decode(variables, features, prompt):
        context = DECODER.apply(variables, features, method="read")
        cache: Any = empty_cache(DECODER, len(prompt), start + rules.length - 1)
        extend = functools.partial(DECODER.apply, variables, method="extend")
        cache = extend(prompt[:, :-1], cache, 0, context)[1]
        step = next_token(DECODER, variables, context)
        return getattr(decoding, name)(step, cache, prompt, rules, **options)

    found = decode(VARIABLES, FEATURES, PROMPTS.astype(np.int32))
    shape = found.tokens.shape
    repeats = math.prod(shape[:-1]) // len(PROMPTS)
    tokens = np.asarray(found.tokens).reshape(-1, rules.length)
    whole = np.concatenate([np.repeat(PROMPTS, repeats, axis=0), tokens], axis=1).astype(np.int32)
    logits, _ = jax.jit(DECODER.apply)(
        VARIABLES, whole, features=np.repeat(FEATURES, repeats, axis=0)
    )
    every = np.asarray(jax.nn.log_softmax(logits[:, start - 1 : -1]))
    gains = np.take_along_axis(every, tokens[..., None], axis=2)[..., 0]
    mask = np.arange(rules.length) < np.asarray(found.lengths).reshape(-1, 1)
    expected = (gains * mask).sum(1).reshape(shape[:-1])
    np.testing.assert_allclose(found.log_probs, expected, rtol=1e-5, atol=1e-5)
    assert len(set(np.asarray(found.lengths).ravel().tolist())) > 1


@pytest.mark.parametrize(
    "change",
    [
        lambda: Rules(3, EOS, PAD, min_length=3),
        lambda: Rules(3, EOS, PAD, no_repeat_ngram=-1),
        lambda: decoding.restrict(jnp.zeros(3), temperature=0.0),
        lambda: decoding.restrict(jnp.zeros(3), top_k=-1),
        lambda: decoding.restrict(jnp.zeros(3), top_p=0.0),
        lambda: run("beam", Network(3, 0), [[0]], Rules(3, EOS, PAD), beams=0),
        lambda: run(
            "beam", Network(3, 0), [[0]], Rules(3, EOS, PAD), beams=2, early_stopping="always"
        ),
    ],
)
def test_options_outside_their_range_are_refused(change):
    with pytest.raises(InputError, match="[=]"):
        change()
