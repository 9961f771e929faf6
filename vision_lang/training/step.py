"""One optimizer step: pure, the same under pmap and under jit.

Shapes: b examples of the global batch that this call sees (all B of them under jit).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from vision_lang import keys as random_keys
from vision_lang.training.averages import Move
from vision_lang.training.optimizer import Grouping
from vision_lang.training.parallel import ONE_DEVICE
from vision_lang.training.state import Ema, TrainState, variables

Batch = dict[str, jax.Array]
NORMS = ("grad_norm", "param_norm", "update_norm", "learning_rate")  # logged beside the metrics


@dataclass(frozen=True, eq=False)
class Step:
    """What a step needs besides state and batch.

    Attributes:
      task: see tasks/.
      optimizer: an optax transformation over the packed parameters; its update gets `across`.
      packing: trainable parameters <-> what the optimizer works on, by group.
      learning_rate: step -> number, for the log.
      averages: name -> how far each average moves at an update (training/averages.py).
      seed: of everything random.
      steps: of the whole training. Batches get `progress` [B], the share of it that is done.
      accumulate: micro-batches that a batch is computed in.
    """

    task: Any
    optimizer: optax.GradientTransformation
    packing: Grouping
    learning_rate: optax.Schedule
    averages: dict[str, Move]
    seed: int
    steps: int
    accumulate: int = 1

    def __call__(
        self, state: TrainState, batch: Batch, *, across: Any
    ) -> tuple[TrainState, jax.Array]:
        """Returns the state after the step, and its `bad_steps` as an array of its own, which can
        still be read when the state has been donated to the next step.

        An update with NaN or Inf in it is skipped whole.
        """
        grads, mutable, metrics = self._gradients(state, *self._given(state, batch), across)

        updates, opt_state = self.optimizer.update(
            grads, state.opt_state, self.packing.pack(state.params), across=across
        )
        norms = (
            optax.tree.norm(grads),
            optax.tree.norm(self.packing.pack(state.params)),
            optax.tree.norm(updates),
            self.learning_rate(state.step),
        )
        finite = jnp.isfinite(metrics["loss"][0]) & jnp.isfinite(norms[0])
        metrics |= {name: (value, 1.0) for name, value in zip(NORMS, norms, strict=True)}
        metrics = jax.tree.map(lambda m: jnp.asarray(m, jnp.float32), metrics)

        keep = lambda new, old: jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)  # noqa: E731
        updates = self.packing.unpack(keep(updates, jax.tree.map(jnp.zeros_like, updates)))
        params = {name: p + updates[name] for name, p in state.params.items()}
        ema = {n: _average(state.ema[n], params, m, finite) for n, m in self.averages.items()}
        window = jax.tree.map(jnp.add, state.window, metrics) if state.window else metrics
        bad_steps = jnp.where(finite, 0, state.bad_steps + 1)
        state = state.replace(
            step=state.step + 1,
            params=params,
            opt_state=keep(opt_state, state.opt_state),
            mutable=keep(mutable, state.mutable),
            ema=ema,
            window=keep(window, state.window) if state.window else window,
            bad_steps=bad_steps,
        )
        return state, jnp.copy(bad_steps)

    def empty_window(self, state: TrainState, batch: Any) -> dict[str, tuple[jax.Array, jax.Array]]:
        """Zeros with the names and shapes of the metrics, of a batch of such shapes and types.

        Only the loss is traced: to trace its gradient as well, for these names, took as long as the
        step itself.
        """

        def metrics(state, batch):
            batch, keys = self._given(state, batch)
            return self._loss(state.params, state, batch, keys, ONE_DEVICE)[1][1]

        number = jax.ShapeDtypeStruct((), jnp.float32)
        found = jax.eval_shape(metrics, state, batch) | dict.fromkeys(NORMS, (number, number))
        return jax.tree.map(lambda s: jnp.zeros(s.shape, jnp.float32), found)

    def _given(self, state: TrainState, batch: Batch) -> tuple[Batch, jax.Array]:
        """The batch with the progress of the training, and the examples' keys."""
        key = random_keys.make(self.seed, "train", state.step)
        progress = state.step.astype(jnp.float32) / self.steps
        batch = batch | {"progress": jnp.broadcast_to(progress, batch["weight"].shape)}
        return batch, random_keys.per_example(key, batch["index"])

    def _loss(self, params, state: TrainState, batch: Batch, keys: jax.Array, across: Any):
        """Returns the sum of the weighted losses, and (the mutable collections, the metrics)."""

        def loss(whole):
            return self.task.loss(whole, batch, keys, across=across, train=True)

        losses, mutable, metrics = across.whole(loss, variables(params, state))
        total = (losses * batch["weight"]).sum()
        return total, (mutable, metrics | {"loss": (total, batch["weight"].sum())})

    def _gradients(self, state: TrainState, batch: Batch, keys: jax.Array, across: Any):
        """Returns the packed gradient of the weighted mean loss over the global batch, the mutable
        collections, and the metrics over it, as (sum, count)."""

        def summed(params, mutable, part, part_keys):
            return self._loss(params, state.replace(mutable=mutable), part, part_keys, across)

        gradient = jax.grad(summed, has_aux=True)
        if self.accumulate == 1:
            grads, (mutable, metrics) = gradient(state.params, state.mutable, batch, keys)
        else:
            parts = jax.tree.map(
                lambda x: x.reshape(self.accumulate, -1, *x.shape[1:]), (batch, keys)
            )

            def one(carry, part):
                grads, mutable = carry
                new, (mutable, metrics) = gradient(state.params, mutable, *part)
                return (jax.tree.map(jnp.add, grads, new), mutable), metrics

            zero = jax.tree.map(jnp.zeros_like, state.params)
            (grads, mutable), metrics = jax.lax.scan(one, (zero, state.mutable), parts)
            metrics = jax.tree.map(lambda m: m.sum(0), metrics)

        grads, metrics = across.mean((self.packing.pack(grads), metrics))
        count = jnp.maximum(metrics["loss"][1], 1e-8)  # the mean over devices of their counts
        return jax.tree.map(lambda g: g / count, grads), mutable, metrics


def _average(ema: Ema, params: dict, move: Move, finite: jax.Array) -> Ema:
    """One update of the average. A skipped step changes nothing and does not count."""
    far = jnp.where(finite, move(ema.count.astype(jnp.float32)), 0.0)
    average = jax.tree.map(lambda a, p: a + far * (p - a), ema.params, params)
    return Ema(average, ema.count + finite)
