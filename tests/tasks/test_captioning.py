"""The captioning task: its loss and likelihood redone by hand, padding, and what it writes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import captioning as config_file
from tests.tasks import parts
from tests.tasks.parts import BOS, PAD
from vision_lang.errors import InputError
from vision_lang.tasks import captioning_config
from vision_lang.tasks.captioning import Decoding

ROWS, SIDE, WORDS, LENGTH = 4, 32, 9, 7


def make(length=LENGTH, **changes):
    """A tiny task; see `parts.change`."""
    config = config_file.get_config("tiny")
    parts.change(config, data__text_length=length, **changes)
    return captioning_config.from_config(config, parts.facts(WORDS, length))


def batch(length=LENGTH):
    """Texts of different lengths, padded."""
    return parts.batch(SIDE, texts=(1, 2, 4, 5), words=WORDS, length=length)


@pytest.fixture(scope="module")
def task():
    return make()


@pytest.fixture(scope="module")
def variables(task):
    """Random ones whose texts differ from picture to picture."""
    found = parts.init(task, 3)
    table = found["params"]["decoder"]["wte"]
    table["embedding"] = table["embedding"] * 8
    return found


def log_probabilities(task, variables, data):
    """Of each token behind the first, given the picture and those before it, float64."""
    features, _ = task.context(variables, data["image"])
    decoder = {"params": variables["params"]["decoder"]}
    logits, _ = task.decoder.apply(decoder, data["tokens"][:, :-1], None, features)
    log_p = np.float64(jax.nn.log_softmax(logits))
    return np.take_along_axis(log_p, data["tokens"][:, 1:, None], -1)[..., 0]


def test_the_loss_is_each_texts_mean_over_its_own_tokens(task, variables):
    data = batch()
    by_hand = log_probabilities(task, variables, data)
    lengths = (data["tokens"] != PAD).sum(1) - 1
    wanted = [-by_hand[row, :n].sum() / n for row, n in enumerate(lengths)]
    losses, _, metrics = parts.loss(task, variables, data)
    np.testing.assert_allclose(losses, wanted, rtol=1e-4)
    assert metrics["token_right"][1] == lengths.sum()
    sums = task.log_likelihood(variables, data["image"], data["tokens"], data["text_mask"])
    np.testing.assert_allclose(sums, -np.array(wanted) * lengths, rtol=1e-4)


def test_a_words_loss_counts_as_often_as_its_weight_says_while_training(variables):
    def made(**weights):
        config = config_file.get_config("tiny")
        parts.change(config, data__text_length=LENGTH, word_weights=weights)
        parts.change(config, optimizer__frozen=("encoder/.*",))  # batch norm as in evaluation
        facts = parts.facts(WORDS, LENGTH)._replace(tokens_of={"left": (3, 5)}.get)
        return captioning_config.from_config(config, facts)

    data = batch()
    data["tokens"][0, :3] = [BOS, 3, 4]
    task = made(left=4.0)
    by_hand = log_probabilities(task, variables, data)
    wanted = data["tokens"][:, 1:]
    counts = np.where(wanted == PAD, 0, 1)
    times = np.where(np.isin(wanted, (3, 5)), 4.0, 1.0)
    before = -(by_hand * counts).sum(1) / counts.sum(1)
    after = -(by_hand * counts * times).sum(1) / counts.sum(1)
    assert (after > before).any()
    np.testing.assert_allclose(parts.loss(task, variables, data)[0], before, rtol=1e-4)
    found = parts.loss(task, variables, data, train=True)[0]
    np.testing.assert_allclose(found, after, rtol=1e-4)
    with pytest.raises(InputError, match="word_weights.right: the tokenizer has no such word"):
        made(right=2.0)
    with pytest.raises(InputError, match="left=-1"):
        made(left=-1.0)


def test_more_padding_changes_nothing(variables):
    short, long = make(LENGTH), make(LENGTH + 3)
    longer = parts.init(long, 3)
    table = longer["params"]["decoder"]["wpe"]["embedding"]
    first = variables["params"]["decoder"]["wpe"]["embedding"]
    position = jnp.concatenate([first, table[LENGTH:]])
    params = dict(variables["params"])
    params["decoder"] = params["decoder"] | {"wpe": {"embedding": position}}
    longer = variables | {"params": params}
    np.testing.assert_allclose(
        parts.loss(short, variables, batch())[0],
        parts.loss(long, longer, batch(LENGTH + 3))[0],
        rtol=1e-5,
    )


def test_a_frozen_encoder_keeps_its_statistics(variables):
    data = batch()
    learning, frozen = make(), make(optimizer__frozen=("encoder/.*",))
    _, moved, _ = parts.loss(learning, variables, data, train=True)
    _, kept, _ = parts.loss(frozen, variables, data, train=True)
    before = variables["batch_stats"]
    same = jax.tree.map(lambda a, b: bool((a == b).all()), before, kept["batch_stats"])
    other = jax.tree.map(lambda a, b: bool((a == b).all()), before, moved["batch_stats"])
    assert all(jax.tree.leaves(same)) and not any(jax.tree.leaves(other))


def test_what_it_writes_is_as_likely_as_it_says(task, variables):
    """Greedy, beam and drawn texts: their log-probability is that of the whole text at once."""
    images = batch()["image"]
    found = {}
    for method in ("greedy", "beam", "nucleus"):
        how = Decoding(method=method, beams=3, top_p=1.0)
        texts = task.describe(variables, images, parts.keys(ROWS), how)
        tokens = np.full((ROWS, LENGTH), PAD, np.int32)
        tokens[:, 0] = BOS
        tokens[:, 1:] = texts.tokens[:, 0]
        mask = np.arange(LENGTH) <= np.asarray(texts.lengths)[:, :1]
        wanted = task.log_likelihood(variables, images, tokens, mask)
        np.testing.assert_allclose(texts.log_probs[:, 0], wanted, rtol=1e-3, atol=1e-3)
        found[method] = np.asarray(texts.log_probs[:, 0])
    drawn = task.describe(variables, images[1:3], parts.keys(ROWS)[1:3], how)
    np.testing.assert_array_equal(drawn.tokens, texts.tokens[1:3])  # alone or among others
    assert len({tuple(t) for t in np.asarray(texts.tokens[:, 0])}) > 1


def test_attention_is_a_share_of_the_picture(task, variables):
    data = batch()
    found = np.asarray(task.attention(variables, data["image"], data["tokens"], data["text_mask"]))
    assert found.shape == (ROWS, LENGTH - 1, 16 * 16)
    np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__stage": "pool7"}, "stage"),
        ({"model__decoder__heads": 3}, "width=32 is no multiple of its heads=3"),
        ({"augmentation__mixup": 0.1}, "no caption"),
        ({"decoding__method": "gready"}, "'greedy'"),
    ],
)
def test_wrong_configs_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        make(**changes)
