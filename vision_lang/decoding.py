"""From a next-token function to texts: greedy, beam search, sampling, each one `lax.while_loop`.

    logits [R, V], cache = next_token(cache, tokens [R], position)

puts the tokens at `position` into the cache and scores those behind them. A prompt of P tokens
stands at positions 0 ... P - 1; the caller has put all but its last into the cache, whose leaves
have rows as first axis. (What never changes, such as an image's features, is better closed over
than kept in the cache.) All functions are pure: call them under `jax.jit`. The loop ends when
every text has ended or has `rules.length` tokens; nothing follows `rules.eos_id` but padding, and
a row depends on nothing outside of it.

Shape letters: B batch, K beams, R rows (B, or B K with an example's beams next to each other),
P prompt length, L `rules.length`, S = P + L, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vision_lang.errors import InputError

Cache = Any
NextToken = Callable[[Cache, jax.Array, jax.Array], tuple[jax.Array, Cache]]


@dataclass(frozen=True)
class Rules:
    """What every way of decoding obeys.

    Attributes:
      length: the most tokens that a text may get, EOS included.
      eos_id: the token that ends a text; -1 for none.
      pad_id: what stands behind the end.
      min_length: so many tokens come before EOS at least.
      no_repeat_ngram: no n tokens in a row may occur twice in prompt and text; 0 for no such rule.
    """

    length: int
    eos_id: int
    pad_id: int
    min_length: int = 0
    no_repeat_ngram: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.min_length < self.length:
            raise InputError(
                f"min_length={self.min_length} and length={self.length}: decoding needs "
                "0 <= min_length < length."
            )
        if self.no_repeat_ngram < 0:
            raise InputError(f"no_repeat_ngram={self.no_repeat_ngram} must be 0 (off) or more.")


class Decoded(NamedTuple):
    """One text per example."""

    tokens: jax.Array  # [B, L] int32: EOS included, padding behind it
    lengths: jax.Array  # [B] int32, EOS included
    log_probs: jax.Array  # [B]: of the text given the prompt, under the model without rules


class Beams(NamedTuple):
    """The K candidates of each example, best score first.

    Where there are fewer than K texts (a tiny vocabulary), the rest has score -inf and length 0.
    """

    tokens: jax.Array  # [B, K, L] int32
    lengths: jax.Array  # [B, K]
    log_probs: jax.Array  # [B, K]
    scores: jax.Array  # [B, K]: log_probs / lengths ** length_penalty


def greedy(next_token: NextToken, cache: Cache, prompt: jax.Array, rules: Rules) -> Decoded:
    """Takes the likeliest token at each step; prompt [B, P] int32."""
    return _decode(next_token, cache, prompt, rules, lambda logits, i: _likeliest(logits))


def sample(
    next_token: NextToken,
    cache: Cache,
    prompt: jax.Array,  # [B, P] int32
    rules: Rules,
    keys: jax.Array,  # [B]
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
) -> Decoded:
    """Draws each token from the model's distribution, made sharper and cut off (see `restrict`).

    Token i of a row is a function of the row's key, folded with i, and of its logits.
    """

    def pick(logits, i):
        logits = restrict(logits, temperature, top_k, top_p)
        return jax.vmap(lambda key, row: jax.random.categorical(jax.random.fold_in(key, i), row))(
            keys, logits
        )

    return _decode(next_token, cache, prompt, rules, pick)


def restrict(
    logits: jax.Array, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0
) -> jax.Array:
    """Returns logits [..., V] over the temperature, minus infinity for what may not be drawn.

    First the `top_k` likeliest tokens remain (0: all), then of their distribution the smallest set
    of likeliest tokens with a probability of `top_p` at least (Holtzman et al. 2020, the nucleus).
    Tokens as likely as the last one that remains remain too.

    Raises:
      InputError: an option is outside its range.
    """
    if temperature <= 0 or top_k < 0 or not 0 < top_p <= 1:
        raise InputError(
            f"temperature={temperature}, top_k={top_k}, top_p={top_p}: sampling needs "
            "temperature > 0, top_k >= 0 (0 = all) and 0 < top_p <= 1."
        )
    logits = logits / temperature
    if 0 < top_k < logits.shape[-1]:
        last = lax.top_k(logits, top_k)[0][..., -1:]
        logits = jnp.where(logits < last, -jnp.inf, logits)
    if top_p < 1:
        ordered = -jnp.sort(-logits, axis=-1)
        shares = jax.nn.softmax(ordered, axis=-1)
        before = jnp.cumsum(shares, axis=-1) - shares  # the probability of likelier tokens
        last = jnp.min(jnp.where(before < top_p, ordered, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits < last, -jnp.inf, logits)
    return logits


def _decode(next_token, cache, prompt, rules, pick) -> Decoded:
    """The loop of greedy decoding and sampling; pick(logits [B, V], step) -> tokens [B]."""
    batch, start = prompt.shape

    def unfinished(state):
        i, _, _, _, ended, _, _ = state
        return (i < rules.length) & ~ended.all()

    def body(state):
        i, cache, texts, last, ended, lengths, log_probs = state
        logits, cache = next_token(cache, last, start - 1 + i)
        chosen = pick(_apply_rules(logits, texts, i, start, rules), i).astype(jnp.int32)
        gain = _at(logits, chosen) - jax.nn.logsumexp(logits, axis=-1)
        log_probs = jnp.where(ended, log_probs, log_probs + gain)
        lengths = jnp.where(ended, lengths, i + 1)
        chosen = jnp.where(ended, rules.pad_id, chosen)
        texts = lax.dynamic_update_slice_in_dim(texts, chosen[:, None], start + i, axis=1)
        ended |= chosen == rules.eos_id
        return i + 1, cache, texts, chosen, ended, lengths, log_probs

    state = (
        jnp.int32(0),
        cache,
        _room(prompt, rules),
        prompt[:, -1].astype(jnp.int32),
        jnp.zeros(batch, bool),
        jnp.zeros(batch, jnp.int32),
        jnp.zeros(batch, jnp.float32),
    )
    _, _, texts, _, _, lengths, log_probs = lax.while_loop(unfinished, body, state)
    return Decoded(texts[:, start:], lengths, log_probs)


class _Search(NamedTuple):
    """The state of a beam search. Scores of what does not exist are minus infinity."""

    i: jax.Array  # tokens that the running texts have
    cache: Cache  # of rows [B K]
    texts: jax.Array  # [B, K, S], running
    log_probs: jax.Array  # [B, K]
    found: Beams  # ended texts, [B, K, S] with the prompt
    closed: jax.Array  # [B]: what was found is final


def beam(
    next_token: NextToken,
    cache: Cache,  # of B rows
    prompt: jax.Array,  # [B, P] int32
    rules: Rules,
    *,
    beams: int,
    length_penalty: float = 1.0,
    early_stopping: bool | str = False,
) -> Beams:
    """Beam search with the semantics of transformers' `generate` (version 5).

    The score of a text is its log-probability over length ** `length_penalty`, EOS counted. Of the
    2 K best continuations of the running texts, the best K that end there (with EOS, or because
    they have L tokens) compete with what was found before; the best K that go on run on. A row is
    closed

      - `early_stopping=True`: when K texts are found;
      - False: when the best running text, scored at its present length, is not above the worst of
        K found ones (which may miss better ones if the penalty is positive);
      - "never": the same, scored at length L where the penalty is positive, which misses nothing.

    One beam that stops early decodes greedily; without, it goes on behind its first text.

    The cache is repeated for the beams here; in `next_token` an example's K rows are neighbours.

    Raises:
      InputError: `beams` is not positive, or `early_stopping` is none of the three.
    """
    if beams < 1:
        raise InputError(f"beams={beams} must be at least 1.")
    if early_stopping != "never" and not isinstance(early_stopping, bool):
        raise InputError(f"early_stopping={early_stopping!r} must be True, False or 'never'.")
    (batch, start), length = prompt.shape, rules.length
    lengths = np.arange(1, length + 1, dtype=np.float64)
    divisors = jnp.asarray(lengths**length_penalty, jnp.float32)
    nothing = jnp.full((batch, beams), -jnp.inf)

    def body(state: _Search) -> _Search:
        i = state.i
        flat = state.texts.reshape(batch * beams, -1)
        logits, cache = next_token(state.cache, _column(flat, start - 1 + i), start - 1 + i)
        gains = _apply_rules(jax.nn.log_softmax(logits, axis=-1), flat, i, start, rules)
        sums = state.log_probs[..., None] + gains.reshape(batch, beams, -1)  # [B, K, V]
        log_probs, which = lax.top_k(sums.reshape(batch, -1), min(2 * beams, sums[0].size))
        parents, chosen = which // sums.shape[-1], which % sums.shape[-1]
        texts = _rows(state.texts, parents)
        texts = lax.dynamic_update_slice_in_dim(texts, chosen[..., None], start + i, axis=2)
        ends = (chosen == rules.eos_id) | (i + 1 == length)

        fresh = ends & (jnp.arange(ends.shape[1]) < beams) & ~state.closed[:, None]
        scores = jnp.where(fresh, log_probs / divisors[i], -jnp.inf)
        ended = Beams(texts, jnp.where(jnp.isfinite(scores), i + 1, 0), log_probs, scores)
        both = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), state.found, ended)
        scores, best = lax.top_k(both.scores, beams)
        found = jax.tree.map(lambda x: _rows(x, best), both)

        log_probs, best = lax.top_k(jnp.where(ends, -jnp.inf, log_probs), beams)
        parents = jnp.take_along_axis(parents, best, axis=1)
        rows = (jnp.arange(batch)[:, None] * beams + parents).reshape(-1)
        cache = jax.tree.map(lambda x: x[rows], cache)

        at = length - 1 if early_stopping == "never" and length_penalty > 0 else i
        closed = state.closed | ~(log_probs[:, 0] / divisors[at] > scores[:, -1])
        if early_stopping is True:
            closed |= jnp.isfinite(scores[:, -1])
        return _Search(i + 1, cache, _rows(texts, best), log_probs, found, closed)

    texts = jnp.repeat(_room(prompt, rules)[:, None], beams, axis=1)
    state = _Search(
        jnp.int32(0),
        jax.tree.map(lambda x: jnp.repeat(x, beams, axis=0), cache),
        texts,
        nothing.at[:, 0].set(0.0),  # one beam at first: all are the same
        Beams(texts, jnp.zeros((batch, beams), jnp.int32), nothing, nothing),
        jnp.zeros(batch, bool),
    )
    going = lambda state: (state.i < length) & ~state.closed.all()  # noqa: E731
    found = lax.while_loop(going, body, state).found
    exists = jnp.isfinite(found.scores)
    tokens = jnp.where(exists[..., None], found.tokens[..., start:], rules.pad_id)
    return found._replace(tokens=tokens, log_probs=jnp.where(exists, found.log_probs, -jnp.inf))


def _apply_rules(logits, texts, i, start, rules) -> jax.Array:
    """Logits [R, V], minus infinity for what may not follow texts [R, S] of start + i tokens."""
    if rules.no_repeat_ngram:
        logits = jnp.where(
            _repeats(texts, start + i, rules.no_repeat_ngram, logits.shape[1]), -jnp.inf, logits
        )
    if rules.min_length and rules.eos_id >= 0:
        eos = jnp.arange(logits.shape[1]) == rules.eos_id
        logits = jnp.where(eos & (i < rules.min_length), -jnp.inf, logits)
    return logits


def _likeliest(logits: jax.Array) -> jax.Array:
    """argmax over [R, V], the first of equals; XLA's own takes one entry at a time on a CPU."""
    places = jnp.arange(logits.shape[1], dtype=jnp.int32)
    best = logits == logits.max(axis=1, keepdims=True)
    return jnp.where(best, places, logits.shape[1] - 1).min(axis=1)


def _repeats(texts: jax.Array, count: jax.Array, n: int, vocabulary: int) -> jax.Array:
    """Which tokens [R, V] would make n tokens in a row occur twice in the first count + 1."""
    rows, room = texts.shape
    windows = max(room - n + 1, 0)
    at = jnp.arange(windows)
    same = jnp.broadcast_to(at + n <= count, (rows, windows))  # the n-gram at `at` is complete
    for j in range(n - 1):
        same &= texts[:, j : j + windows] == _column(texts, count - (n - 1) + j)[:, None]
    banned = jnp.zeros((rows, vocabulary), bool)
    return banned.at[jnp.arange(rows)[:, None], texts[:, n - 1 :]].max(same)


def _room(prompt: jax.Array, rules: Rules) -> jax.Array:
    """[B, P] -> [B, S], padding behind the prompt."""
    return jnp.pad(
        prompt.astype(jnp.int32), ((0, 0), (0, rules.length)), constant_values=rules.pad_id
    )


def _column(x: jax.Array, at: jax.Array) -> jax.Array:
    """x[:, at] for a traced `at`."""
    return lax.dynamic_index_in_dim(x, at, axis=1, keepdims=False)


def _at(x: jax.Array, index: jax.Array) -> jax.Array:
    """x[r, index[r]] for every row."""
    return jnp.take_along_axis(x, index[:, None], axis=1)[:, 0]


def _rows(x: jax.Array, index: jax.Array) -> jax.Array:
    """x[b, index[b, k]] for x [B, K, ...] and index [B, k]."""
    return jax.vmap(lambda row, which: row[which])(x, index)
