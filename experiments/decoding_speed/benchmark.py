"""Times cached greedy decoding beside transformers' of the same decoder and the bare matmuls.

    .venv-parity/bin/python -m experiments.decoding_speed.benchmark --rounds=15 [--device=cuda]

Needs torch and transformers (`make test-parity` makes that environment). One prompt token, 32 new
ones, 4 layers of width 256 with 4 heads, a vocabulary of 1,000, full float32, no text ends early.
Both decode with the same random weights and must choose the same tokens. Rounds take the
contestants in turn, each after a short rest, since threads of one library spin on behind its work;
a ratio is the median over rounds of the ratio within a round. Prints JSON, times in ms.

The floor is what the matrix products of the 32 steps take alone, at a step's shapes and with each
layer's own kernels: in XLA, in torch, and the faster of the two (the lower median) as `floor`.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable

import numpy as np
from absl import app, flags

FLAGS = flags.FLAGS
WIDTH, LAYERS, HEADS, VOCABULARY, LENGTH = 256, 4, 4, 1000, 32
REST = 0.2  # seconds before each timing


def kernels() -> list[np.ndarray]:
    """The kernels of one step's matrix products, [in, out], in their order."""
    shapes = LAYERS * [
        (WIDTH, 3 * WIDTH),
        (WIDTH, WIDTH),
        (WIDTH, 4 * WIDTH),
        (4 * WIDTH, WIDTH),
    ] + [(WIDTH, VOCABULARY)]
    rng = np.random.default_rng(0)
    return [np.float32(rng.normal(size=shape) / shape[0] ** 0.5) for shape in shapes]


def xla_floor(batch: int) -> Callable[[], object]:
    import jax
    import jax.numpy as jnp

    @jax.jit
    def products(inputs, weights):
        def step(_, total):  # depends on the loop, so that nothing is computed once for all
            found = [((inputs[w.shape[0]] + total) @ w).min() for w in weights]
            return total + 1e-9 * sum(found)

        return jax.lax.fori_loop(0, LENGTH, step, jnp.float32(0.0))

    weights = [jnp.asarray(w) for w in kernels()]
    inputs = {n: jnp.ones((batch, n)) for n in (WIDTH, 4 * WIDTH)}
    return lambda: products(inputs, weights).block_until_ready()


def torch_floor(batch: int) -> Callable[[], object]:
    import torch  # noqa: TID251

    weights = [torch.tensor(w, device=FLAGS.device) for w in kernels()]
    inputs = {n: torch.ones(batch, n, device=FLAGS.device) for n in (WIDTH, 4 * WIDTH)}

    def products():
        with torch.inference_mode():
            for _ in range(LENGTH):
                for w in weights:
                    inputs[w.shape[0]] @ w
        finish()

    return products


def finish() -> None:
    """Waits for what torch has still to do on a GPU."""
    import torch  # noqa: TID251

    if FLAGS.device == "cuda":
        torch.cuda.synchronize()


def contestants(batch: int) -> dict[str, Callable[[], object]]:
    import flax.traverse_util
    import jax
    import jax.numpy as jnp
    import torch  # noqa: TID251
    import transformers

    from vision_lang import decoding
    from vision_lang.models.text_decoder import (
        TEXT_DECODERS,
        TextDecoder,
        empty_cache,
        next_token,
    )

    spec = TEXT_DECODERS["small"]
    assert (spec.width, spec.layers, spec.heads) == (WIDTH, LAYERS, HEADS)
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=2 * LENGTH,
        n_embd=WIDTH,
        n_layer=LAYERS,
        n_head=HEADS,
        bos_token_id=0,
        eos_token_id=None,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    theirs = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        theirs.transformer.wpe.weight *= 50  # else a text repeats one token
    decoder = TextDecoder(spec, VOCABULARY, 2 * LENGTH)
    shapes = jax.eval_shape(decoder.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
    params = {}
    for name in flax.traverse_util.flatten_dict(shapes["params"], sep="."):
        stem, leaf = name.replace("h_", "h.").rsplit(".", 1)
        tensor = theirs.get_parameter(
            f"transformer.{stem}.{'bias' if leaf == 'bias' else 'weight'}"
        )
        params[name] = jnp.asarray(tensor.detach().numpy())
    theirs.to(FLAGS.device)
    variables = {"params": flax.traverse_util.unflatten_dict(params, sep=".")}
    rules = decoding.Rules(LENGTH, eos_id=-1, pad_id=0)
    prompt = np.arange(batch, dtype=np.int32)[:, None] % VOCABULARY
    ids = torch.tensor(prompt).long().to(FLAGS.device)

    @jax.jit
    def decode(variables, prompt):
        step = next_token(decoder, variables)
        return decoding.greedy(step, empty_cache(decoder, batch, LENGTH), prompt, rules).tokens

    def generate():
        with torch.inference_mode():
            found = theirs.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=LENGTH,
                do_sample=False,
            )[:, 1:]
        finish()
        return found

    ours = np.asarray(decode(variables, prompt))
    assert len(set(ours[0].tolist())) > LENGTH // 4, "a text that repeats itself proves little"
    np.testing.assert_array_equal(ours, generate().cpu().numpy())
    return {
        "ours": lambda: decode(variables, prompt).block_until_ready(),
        "transformers": generate,
        "xla_floor": xla_floor(batch),
        "torch_floor": torch_floor(batch),
    }


def measure(batch: int, rounds: int) -> dict[str, object]:
    calls = contestants(batch)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            time.sleep(REST)
            start = time.perf_counter()
            call()
            times[name].append(1e3 * (time.perf_counter() - start))
    medians = {name: statistics.median(values) for name, values in times.items()}
    floor = min(("xla_floor", "torch_floor"), key=lambda name: medians[name])

    def ratio(other: str) -> float:
        pairs = zip(times["ours"], times[other], strict=True)
        return round(statistics.median(a / b for a, b in pairs), 3)

    return {
        "median_ms": {name: round(value, 1) for name, value in medians.items()},
        "least_ms": {name: round(min(values), 1) for name, values in times.items()},
        "floor": floor,
        "ours_over_transformers": ratio("transformers"),
        "ours_over_floor": ratio(floor),
    }


def main(_: list[str]) -> None:
    import jax
    import torch  # noqa: TID251
    import transformers

    jax.config.update("jax_default_matmul_precision", "highest")  # no TF32, as torch's default
    load = os.getloadavg()[0]
    device = jax.local_devices()[0].device_kind
    if FLAGS.device == "cuda" and device != torch.cuda.get_device_name():
        raise SystemExit(f"JAX runs on '{device}', torch on '{torch.cuda.get_device_name()}'.")
    found = {
        "versions": {m.__name__: m.__version__ for m in (jax, torch, transformers)},
        "device": device,
        "cores": len(os.sched_getaffinity(0)),
        "torch_threads": torch.get_num_threads(),
        "rounds": FLAGS.rounds,
        "load_before": round(load, 1),  # other programs that wanted a core in the minute before
        **{f"batch_{batch}": measure(batch, FLAGS.rounds) for batch in (32, 1)},
    }
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    flags.DEFINE_enum("device", "cpu", ("cpu", "cuda"), "Where torch works.")
    flags.DEFINE_integer("rounds", 15, "Timings of each.", lower_bound=1)
    app.run(main)
