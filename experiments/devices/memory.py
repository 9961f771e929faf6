"""Memory that a training step wants of each device, from what XLA says of the compiled step.

    python -m experiments.devices.memory --out=experiments/devices/memory.json

The state is made, and nothing trained. The devices are forced host devices of the CPU, whose own
temporaries of an operation (im2col, say) an accelerator does not have.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from absl import app, flags

COUNTS = (1, 2, 4, 8)
LAYERS = 4  # of GPT-2's twelve, which take minutes to compile
ROWS = 8  # of the whole batch


def main(_: list[str]) -> None:
    """Writes the record, and prints a line for each way and number of devices."""
    # XLA reads this when JAX starts. Programs are not run: to optimise their code would be in vain.
    os.environ["XLA_FLAGS"] = (
        f"--xla_force_host_platform_device_count={COUNTS[-1]} --xla_backend_optimization_level=0"
    )
    import jax

    found = {}
    for kind, counts in (("jit", (1, COUNTS[-1])), ("fsdp", COUNTS)):
        for count in counts:
            found[f"{kind} {count}"] = one = measure(kind, count)
            print(f"{kind} {count}: {one}", flush=True)
    record = {
        "command": "python -m experiments.devices.memory",
        "config": f"configs/captioning.py:decoder=gpt2, {LAYERS} layers, 1,024 tokens",
        "rows": ROWS,
        "jax": jax.__version__,
        "megabytes": found,
    }
    Path(flags.FLAGS.out).write_text(json.dumps(record, indent=1) + "\n")


def measure(kind: str, count: int) -> dict[str, float]:
    """Megabytes on each device: of the state, which stays there, and of the step's temporaries."""
    import jax

    from configs import captioning
    from vision_lang import tasks
    from vision_lang.tasks.facts import DataFacts
    from vision_lang.training import parallel, setup

    config = captioning.get_config("decoder=gpt2")
    config.model.decoder.layers = LAYERS
    config.parallel, config.batch_size = kind, ROWS
    config.word_weights = {}
    length = config.data.text_length
    facts = DataFacts(1_024, (0,) * length, (True,) + (False,) * (length - 1), 0, lambda _: ())
    task = tasks.entry(config).make(config, facts)
    way = parallel.make(kind, ROWS, devices=jax.devices()[:count])
    step, state = setup.start(config, task, way.lay_out)
    state = way.place_state(state)
    rows = way.place(
        {n: jax.numpy.zeros((ROWS, *s.shape), s.dtype) for n, s in task.batch_spec().items()}
    )
    compiled: Any = way.step(step)
    wanted = compiled.lower(state, rows).compile().memory_analysis()
    size = lambda tree: sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree)) / 1e6  # noqa: E731
    return {
        "parameters": round(size(state.params), 1),
        "whole_state": round(size(state), 1),
        "state": round((wanted.argument_size_in_bytes - size(rows) * 1e6 / count) / 1e6, 1),
        "temporaries": round(wanted.temp_size_in_bytes / 1e6, 1),
    }


def table(record: dict) -> str:
    """The record as Markdown: a row for each way and number of devices."""
    found = record["megabytes"]
    lines = ["| `parallel`, devices | state | temporaries | both |", "|---|---|---|---|"]
    for way, one in found.items():
        state, temporary = one["state"], one["temporaries"]
        lines.append(
            f"| {way} | {state:,.0f} MB | {temporary:,.0f} MB | {state + temporary:,.0f} MB |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    flags.DEFINE_string("out", None, "The record, JSON.", required=True)
    app.run(main)
