"""Images -> descriptions, from a captioning run, as JSON lines on stdout.

    python -m vision_lang.describe --run=DIR IMAGE... [--decode=greedy|beam|nucleus]

IMAGE is a file, a folder or a pattern. A line: image, caption, logprob; with beam search also
candidates (a list of {caption, logprob, score}, the best first). --attention=out.png draws where
the decoder looks while it writes each word. A picture that cannot be read is named on stderr and
the rest goes on; the exit code is 1 then.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import Any

import numpy as np
from absl import flags

from vision_lang import flags as commands
from vision_lang.errors import InputError

FLAGS = flags.FLAGS
METHODS = ("greedy", "beam", "nucleus")


def main() -> None:
    """Defines the flags and runs the command."""
    commands.define_run()
    flags.DEFINE_enum("decode", None, METHODS, "How to write; default: the run's config.")
    flags.DEFINE_integer("beams", None, "Candidates of beam search.", lower_bound=1)
    flags.DEFINE_float("length_penalty", None, "Of beam search: above 0 favours longer texts.")
    flags.DEFINE_float("temperature", None, "Of nucleus sampling.")
    flags.DEFINE_float("top_p", None, "Of nucleus sampling.")
    flags.DEFINE_integer("top_k", None, "Of nucleus sampling; 0 = all tokens.", lower_bound=0)
    flags.DEFINE_integer("no_repeat_ngram", None, "No n tokens in a row twice.", lower_bound=0)
    flags.DEFINE_integer("seed", 0, "Decides what is drawn.")
    flags.DEFINE_string("attention", "", "A picture of where the decoder looks.")
    commands.run(_run, names=True)


def _run(places: list[str]) -> None:
    from vision_lang.training import devices

    devices.set_up()
    from vision_lang import keys as random_keys
    from vision_lang.over_inputs import answers
    from vision_lang.tasks.captioning import Decoding
    from vision_lang.training import setup

    loaded = setup.load(FLAGS.run, FLAGS.weights)
    if loaded.config.task != "captioning":
        raise InputError(f"Run '{FLAGS.run}' is a {loaded.config.task} run: it does not describe.")
    fields = ("beams", "length_penalty", "temperature", "top_p", "top_k", "no_repeat_ngram")
    given = {"method": FLAGS.decode} | {name: FLAGS[name].value for name in fields}
    given = {name: value for name, value in given.items() if value is not None}
    how = dataclasses.replace(Decoding(**loaded.config.decoding), **given)

    def rows(variables, batch):
        keys = random_keys.per_example(random_keys.make(FLAGS.seed, "describe"), batch["number"])
        return loaded.task.describe(variables, batch["image"], keys, how)._asdict()

    looked: list[tuple[np.ndarray, np.ndarray]] = []  # (picture, its text's tokens)
    try:
        for name, picture, found in answers(loaded, places, rows, "describe"):
            line = {"image": name} | answer(found, loaded.tokenizer, how.method)
            print(json.dumps(line), flush=True)
            if FLAGS.attention:
                looked.append((picture, found["tokens"][0, : found["lengths"][0]]))
    finally:  # also where the others could not be read, which ends the command
        if looked:
            _draw_attention(loaded, looked)


def answer(row: dict[str, np.ndarray], words: Any, method: str) -> dict[str, object]:
    """What a line tells of one picture's candidates (decoding.Beams without the batch axis)."""
    texts = [words.decode(t[:n]) for t, n in zip(row["tokens"], row["lengths"], strict=True)]
    log_probs = [round(float(p), 6) for p in row["log_probs"]]
    line: dict[str, object] = {"caption": texts[0], "logprob": log_probs[0]}
    if method == "beam":
        line["candidates"] = [
            {"caption": text, "logprob": log_prob, "score": round(float(score), 6)}
            for text, log_prob, score in zip(texts, log_probs, row["scores"], strict=True)
            if np.isfinite(score)
        ]
    return line


def _draw_attention(loaded: Any, looked: list[tuple[np.ndarray, np.ndarray]]) -> None:
    """One row per picture: the picture, then for each token where the decoder looks, in red."""
    import jax
    from PIL import Image

    from vision_lang.evaluators import drawing

    task, length = loaded.task, loaded.config.data.text_length
    attention = jax.jit(task.attention)
    rows, titles, columns = [], [], 1 + max(len(tokens) for _, tokens in looked)
    for picture, text in looked:
        tokens = np.full((1, length), task.padding, np.int32)
        tokens[0, : len(text) + 1] = [task.begin, *text]
        mask = np.arange(length)[None] <= len(text)
        weights = np.asarray(attention(loaded.variables, picture[None], tokens, mask))[0]
        side = round(weights.shape[1] ** 0.5)
        row, words = [picture], [loaded.tokenizer.decode(text)]
        for token, weight in zip(text, weights, strict=False):
            grey = Image.fromarray((weight / weight.max()).reshape(side, side).astype(np.float32))
            shade = np.asarray(grey.resize(picture.shape[:2], Image.Resampling.NEAREST))[..., None]
            red = np.array([255.0, 0.0, 0.0])
            row.append(np.rint(picture * (1 - 0.7 * shade) + 0.7 * shade * red).astype(np.uint8))
            words.append(loaded.tokenizer.decode([int(token)]) or "<end>")
        blank = np.full_like(picture, 255)
        rows += row + [blank] * (columns - len(row))
        titles += words + [""] * (columns - len(row))
    page = drawing.grid(np.stack(rows), titles, columns, max(1, 96 // len(looked[0][0])))
    Image.fromarray(page).save(FLAGS.attention, optimize=True)
    print(FLAGS.attention, file=sys.stderr)


if __name__ == "__main__":
    main()
