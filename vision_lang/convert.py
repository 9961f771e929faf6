"""Makes a run folder of published weights.

    python -m vision_lang.convert --kind=vgg --path=vgg16.safetensors --run=runs/vgg16
    python -m vision_lang.convert --kind=diffusers --path=stable-diffusion --run=runs/sd
    python -m vision_lang.convert --kind=clip --path=clip-vit-base-patch32 --run=runs/clip
    python -m vision_lang.convert --kind=inception_fid --path=inception.safetensors --run=runs/fid

| kind                                     | what the run is good for                              |
|------------------------------------------|-------------------------------------------------------|
| vgg                                      | recognize, extract; an encoder to begin with (without |
|                                          | a head nothing else): --config.init.encoder=RUN       |
| diffusers: a folder with model_index.json| generate, extract --texts                             |
| clip: a folder with its tokenizer        | recognize --descriptions, extract, search, to judge   |
|                                          | what a diffusion run draws (--matcher, --features)    |
| clip_vision                              | extract, search by picture, to judge (--features); to |
|                                          | begin with: --config.init.vision_encoder=RUN          |
| inception_fid                            | extract, to judge (--features): the distances are FID |
|                                          | and KID if the weights are those of FID               |
| gpt2, clip_text, t5_encoder, unet,       | networks to begin with: --config.init.NAME=RUN        |
| autoencoder                              |                                                       |

`evaluate` wants a run that knows its data: one that was trained, if only at a rate of 0. What was
converted is fine-tuned as a new run, which begins with its weights:

    python -m vision_lang.main --config=RUN/config.json --config.data.path=DIR

This holds for vgg, diffusers and clip. What FID is computed with is told from other weights by the
sha256 of the file that torch-fidelity publishes, which vision_lang.pretrained.from_torch keeps and
the run's config.model.source_sha256 repeats.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from absl import flags, logging
from etils import epath

from vision_lang import flags as commands
from vision_lang.errors import InputError, choose

if TYPE_CHECKING:
    from vision_lang.runs import converted

FLAGS = flags.FLAGS


def main() -> None:
    """Defines the flags and runs the command."""
    flags.DEFINE_string("kind", "", "What is published there: a kind of the table above.")
    flags.DEFINE_string("path", "", "The file or folder of weights.")
    flags.DEFINE_string("run", "", "The run folder to make.")
    flags.DEFINE_string("classes", "", "vgg: a file with the name of a class on each line.")
    commands.run(_run)


def _run() -> None:
    from vision_lang.runs import converted
    from vision_lang.training import devices

    convert = choose(converted.KINDS, FLAGS.kind, "kind of published weights (--kind)")
    if not FLAGS.path:
        raise InputError("Say where the weights lie: --path=FILE_OR_FOLDER.")
    devices.set_up()
    made = convert(epath.Path(FLAGS.path))
    if FLAGS.classes:
        if not made.class_names:
            raise InputError("--classes names the classes of a VGG with a head; this has none.")
        made = made._replace(class_names=_read_names(len(made.class_names)))
    _write(FLAGS.run, made)
    print(FLAGS.run)


def _read_names(count: int) -> list[str]:
    """The lines of --classes, which must be as many as the weights have classes."""
    try:
        lines = epath.Path(FLAGS.classes).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--classes={FLAGS.classes} cannot be read: {error}.") from error
    names = [line.strip() for line in lines if line.strip()]
    if len(names) != count:
        raise InputError(f"--classes names {len(names)} classes, the weights have {count}.")
    return names


def _write(path: str, made: converted.Converted) -> None:
    """Makes the run folder, with the weights as those of step 0."""
    import flax.traverse_util

    from vision_lang.data import tokenizer
    from vision_lang.runs import checkpoint, files, folder, provenance
    from vision_lang.runs import config as config_lib

    config = made.config
    for part in config.get("init", {}):
        if part in made.variables["params"]:
            config.init[part] = path  # a run like this one begins with these weights
    if made.tokenizer and "data" in config:
        config.data.tokenizer = str(epath.Path(path) / "tokenizer.json")
    run = folder.create(path, config.task)
    files.write_text(run.config, config_lib.to_json(config))
    if made.tokenizer or config.task != "weights":  # the others are opened with one, read or not
        words = made.tokenizer or tokenizer.train(["a"], tokenizer.SMALLEST_VOCABULARY).json
        files.write_text(run.tokenizer, words)
    facts = {"name": "converted", "fingerprint": "", "splits": {}}
    files.write_json(run.data, facts | {"class_names": made.class_names})
    record = provenance.collect(sys.argv, config_lib.fingerprint(config), "")
    files.write_json(run.provenance, {"starts": [{"step": 0} | record]})
    params = flax.traverse_util.flatten_dict(made.variables["params"], sep="/")
    mutable = {name: tree for name, tree in made.variables.items() if name != "params"}
    lasting = config_lib.lasting_hash(config)
    with checkpoint.Checkpoints(run.checkpoints, config_hash=lasting) as saved:
        saved.save(0, {"params": params, "frozen": {}, "mutable": mutable})
    logging.info("%d parameters", sum(x.size for x in params.values()))


if __name__ == "__main__":
    main()
