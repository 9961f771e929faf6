"""T5's encoder in a diffusion run: what it says, its padding, its null text, who learns from it."""

from __future__ import annotations

import dataclasses
import functools
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from safetensors.numpy import load_file

from configs import diffusion as config_file
from tests.data.test_tokenizer import unigram
from tests.pretrained import references
from tests.tasks import parts
from vision_lang import convert, export, pretrained
from vision_lang.data.tokenizer import Tokenizer
from vision_lang.errors import InputError
from vision_lang.tasks import diffusion_config
from vision_lang.tasks.facts import DataFacts
from vision_lang.training import parallel, setup

WEIGHTS = references.weights(Path(__file__).parents[1] / "fixtures" / "references" / "t5_gated")
TEXTS = ["a red circle", "", "a blue square below a ring"]
LENGTH, SIDE = 24, 16


def make(words, length=LENGTH, **changes):
    """Of a tiny task, whose text encoder has the sizes of the fixture."""
    model, _ = pretrained.load("t5_encoder", WEIGHTS)
    config = config_file.get_config("tiny,text=t5_tiny")
    config.data.update(resolution=SIDE, text_length=length)
    config.batch_size = len(TEXTS)
    sizes = dataclasses.asdict(dataclasses.replace(model.net.spec, dropout=0.0))
    config.model.text = ConfigDict(sizes | {"vocab_size": model.net.vocab_size})
    config.optimizer.frozen = ("text_encoder/.*",)
    parts.change(config, **changes)
    ids, mask = words.encode("", length)
    facts = DataFacts(words.vocab_size, tuple(map(int, ids)), tuple(map(bool, mask)), 0)
    return config, diffusion_config.from_config(config, facts)


def batch(words, length):
    tokens, mask = words.encode_batch(TEXTS, length)
    rows = parts.batch(SIDE, labels=[-1] * len(TEXTS))
    progress = np.full(len(TEXTS), 0.5, np.float32)
    return rows | {"tokens": tokens, "text_mask": mask, "progress": progress}


@pytest.fixture(scope="module")
def words():
    return unigram()


@pytest.fixture(scope="module")
def variables(words):
    """Where nothing is zero, with the fixture's text encoder."""
    shapes = jax.eval_shape(make(words)[1].init, jax.random.key(0))
    random = np.random.default_rng(0)
    fill = lambda s: 0.2 * random.standard_normal(s.shape, np.float32)  # noqa: E731
    params = jax.tree.map(fill, shapes)["params"]
    _, theirs = pretrained.load("t5_encoder", WEIGHTS)
    return {"params": params | {"text_encoder": theirs["params"]}}


@pytest.mark.parametrize("policy", ["masked", "none"])
def test_the_context_is_what_the_published_network_says(words, variables, policy):
    _, task = make(words, text_mask=policy)
    rows = batch(words, LENGTH)
    mask = rows["text_mask"] if policy == "masked" else np.ones_like(rows["text_mask"])
    model, theirs = pretrained.load("t5_encoder", WEIGHTS)

    @jax.jit
    def all_three(variables, theirs):
        context = task.encode(variables, task.condition_of(rows)).context
        states = task.text_layers(variables, rows["tokens"], rows["text_mask"])["states"]
        return context, states, model.apply(theirs, rows["tokens"], mask)["last_hidden_state"]

    context, states, wanted = all_three(variables, theirs)
    np.testing.assert_allclose(context, wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(states, wanted, rtol=1e-5, atol=1e-6)


def test_padding_and_the_empty_text(words, variables):
    """Longer padding changes no loss; the empty caption and a dropped one are the null text."""
    tasks = {length: make(words, length)[1] for length in (LENGTH, LENGTH + 7)}
    losses = {
        length: parts.loss(task, variables, batch(words, length)) for length, task in tasks.items()
    }
    np.testing.assert_allclose(losses[LENGTH][0], losses[LENGTH + 7][0], rtol=1e-4)
    task = tasks[LENGTH]
    condition, null = task.condition_of(batch(words, LENGTH)), task.conditioning.null(1)
    np.testing.assert_array_equal(condition.tokens[1], null.tokens[0])
    np.testing.assert_array_equal(null.tokens[0, :2], [words.eos_id, words.pad_id])
    np.testing.assert_array_equal(null.mask[0].sum(), 1)
    dropped = task.conditioning.drop(condition, jnp.array([True, False, False]))
    np.testing.assert_array_equal(dropped.tokens[0], condition.tokens[1])


def test_a_converted_t5_is_written_back_bit_for_bit(words, command, tmp_path):
    run, out, folder = tmp_path / "t5", tmp_path / "out.safetensors", tmp_path / "published"
    shutil.copytree(WEIGHTS.parent, folder)
    (folder / "tokenizer.json").write_text(words.json)
    (folder / "special_tokens_map.json").write_text('{"pad_token": "<pad>"}')
    file = folder / WEIGHTS.name
    made = command(convert.main, "--kind=t5_encoder", f"--path={file}", f"--run={run}")
    assert made.code == 0, made.err
    assert Tokenizer((run / "tokenizer.json").read_text()).specials == words.specials
    made = command(export.main, f"--run={run}", "--network=text_encoder", f"--out={out}")
    assert made.code == 0, made.err
    before, after = load_file(WEIGHTS), load_file(out)
    assert set(after) == set(before) - {"encoder.embed_tokens.weight"}
    for name, tensor in after.items():
        np.testing.assert_array_equal(tensor, before[name], err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [True, False])
def test_two_steps_from_a_converted_t5(words, command, tmp_path, frozen):
    """As the commands do it: its weights stay, or learn with the U-Net. The first step's rate is 0,
    as that of every warm-up."""
    run = tmp_path / "t5"
    made = command(convert.main, "--kind=t5_encoder", f"--path={WEIGHTS}", f"--run={run}")
    assert made.code == 0, made.err
    changes = {} if frozen else {"optimizer__frozen": ()}
    config, task = make(words, init__text_encoder=str(run), optimizer__warmup=1, **changes)
    step, first = setup.start(config, task)
    _, theirs = pretrained.load("t5_encoder", WEIGHTS)
    own = first.variables()["params"]["text_encoder"]
    jax.tree.map(np.testing.assert_array_equal, own, theirs["params"])
    rows = {name: batch(words, LENGTH)[name] for name in task.batch_spec()}
    compiled, state = jax.jit(functools.partial(step, across=parallel.ONE_DEVICE)), first
    for _ in range(2):
        state, bad = compiled(state, rows)
        assert not bad
    jax.tree.map(np.testing.assert_array_equal, state.frozen, first.frozen)
    moved = {n for n, p in state.params.items() if np.any(p != first.params[n])}
    learned = {name.split("/")[0] for name in moved}
    assert learned == {"unet", "sketch"} | (set() if frozen else {"text_encoder"})


def test_too_few_rows_for_the_tokenizer_are_refused(words):
    with pytest.raises(InputError, match="more than model.text.vocab_size=5"):
        make(words, model__text__vocab_size=5)
    with pytest.raises(InputError, match="buckets=7 must be even"):
        make(words, model__text__buckets=7)
    assert make(words, model__text__vocab_size=0)[1].text_encoder.vocab_size == words.vocab_size
