"""Writes a network of a run as published weights, for the libraries that read them.

    python -m vision_lang.export --run=RUN --network=unet --out=diffusion_pytorch_model.safetensors

| --network      | of a run of                          | layout                               |
|----------------|--------------------------------------|--------------------------------------|
| unet           | diffusion                            | diffusers' UNet2DConditionModel      |
| autoencoder    | diffusion, autoencoder               | diffusers' AutoencoderKL             |
| text_encoder   | diffusion, contrastive, clip         | transformers' CLIPTextModel, or      |
|                |                                      | T5EncoderModel where it is a T5      |
| vision_encoder | clip, features                       | transformers' CLIPVisionModel        |
| clip           | clip                                 | transformers' CLIPModel              |
| decoder        | captioning                           | transformers' GPT2LMHeadModel        |
| encoder        | recognition, captioning, contrastive | torchvision's VGG; Keras's where     |
|                |                                      | config.model.preprocessing=keras     |

A network that was converted alone is written likewise. A VGG in Keras's layout may also go to
--out=FILE.h5, which Keras's load_weights reads. What an encoder's pictures were preprocessed by
stands in the metadata of a safetensors file. The averaged weights are written where there are any,
LoRA's updates merged. What the library wants beside them, config.json and a tokenizer, is that of
the folder that the run was converted from.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from absl import flags, logging
from etils import epath
from ml_collections import ConfigDict

from vision_lang import flags as commands
from vision_lang.errors import InputError, choose

FLAGS = flags.FLAGS


def main() -> None:
    """Defines the flags and runs the command."""
    commands.define_run()
    flags.DEFINE_string("network", "", "Which of the run's networks: " + ", ".join(NETWORKS) + ".")
    flags.DEFINE_string("out", "", "The .safetensors file to write.")
    flags.DEFINE_bool("overwrite", False, "Replace --out if it is there.")
    commands.run(_run)


def _run() -> None:
    from vision_lang.pretrained import layout, tensors
    from vision_lang.runs import folder
    from vision_lang.training import stored

    rows_of = choose(NETWORKS, FLAGS.network, "network (--network)")
    out = epath.Path(FLAGS.out)
    if not FLAGS.out.endswith((".safetensors", *tensors.HDF5)):
        raise InputError("Say where to write the weights: --out=FILE.safetensors.")
    if out.exists() and not FLAGS.overwrite:
        raise InputError(f"'{out}' is there already; --overwrite replaces it.")
    config = folder.open(FLAGS.run.rpartition("@")[0] or FLAGS.run).read_config()
    spec = stored.spec(FLAGS.run, FLAGS.weights)
    source, found = stored.weights_of(spec)
    own = _parts(found, WHOLE if FLAGS.network == "clip" else {FLAGS.network: ""})
    if not own or (FLAGS.network == "clip" and config.task != "clip"):
        raise InputError(f"Run '{FLAGS.run}' has no network '{FLAGS.network}'.")
    encoder = FLAGS.network == "encoder"
    if FLAGS.out.endswith(tensors.HDF5) and not (encoder and _of_keras(config)):
        raise InputError("Only a VGG of Keras's is written as .h5: --out=FILE.safetensors.")
    metadata = {"preprocessing": config.model.preprocessing} if encoder else {}
    try:
        found = layout.write(layout.nested(own), rows_of(config))
    except ValueError as error:
        raise InputError(
            f"The {FLAGS.network} of '{FLAGS.run}' is not of the published architecture: {error}."
        ) from error
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        tensors.write(out, found, metadata)
    except OSError as error:
        raise InputError(f"'{out}' cannot be written: {error.strerror or error}.") from error
    logging.info("%d tensors of %s", len(found), source)
    print(out)


def _parts(found: dict[str, Any], parts: dict[str, str]) -> dict[str, Any]:
    """Of variables by path, 'params/unet/...', those of the given networks under other names."""
    own = {}
    for path, array in found.items():
        collection, _, rest = path.partition("/")
        for part, name in parts.items():
            if rest.startswith(part + "/"):
                own["/".join(filter(None, (collection, name, rest[len(part) + 1 :])))] = array
    return own


def _demand(what: str, **fields: tuple[Any, Any]) -> None:
    """Raises ValueError for a field whose value (found, published) is not the published one."""
    for name, (found, published) in fields.items():
        if found != published:
            raise ValueError(f"{what}.{name}={found}, where {published} is published")


def _unet(config: ConfigDict) -> Any:
    from vision_lang.pretrained import unet

    spec = config.model.unet
    _demand("model.unet", positions=(spec.positions, False), pooled_text=(spec.pooled_text, False))
    return unet.rows(spec.linear_projection)


def _autoencoder(config: ConfigDict) -> Any:
    from vision_lang.pretrained import autoencoder

    return autoencoder.ROWS


def _text_encoder(config: ConfigDict) -> Any:
    from vision_lang.pretrained import clip, t5

    spec = config.get("model", {}).get("text", {})
    if "buckets" in spec or config.get("network") == "t5_encoder":
        return t5.ROWS
    if spec:
        slopes = tuple(spec.distance_slopes)
        _demand("model.text", causal=(spec.causal, True), distance_slopes=(slopes, ()))
    return _at_root(clip.TEXT, "text_model")


def _vision_encoder(config: ConfigDict) -> Any:
    from vision_lang.pretrained import clip

    return _at_root(clip.VISION, "vision_model")


def _clip(config: ConfigDict) -> Any:
    from vision_lang.pretrained import clip

    return clip.ROWS


def _at_root(rows: Any, published: str) -> Any:
    """The rows of a network that is a run's own, not a part of another."""
    from vision_lang.pretrained.layout import under

    return tuple(r._replace(ours=r.ours.removeprefix("/")) for r in under(rows, published, ""))


def _decoder(config: ConfigDict) -> Any:
    from vision_lang.pretrained import gpt2

    return gpt2.ROWS


def _encoder(config: ConfigDict) -> Any:
    from vision_lang.models.vgg import VGGSpec
    from vision_lang.pretrained import vgg

    spec = VGGSpec(**config.model.encoder)
    _demand(
        "model.encoder",
        padding=(spec.padding, "SAME"),
        stages=(len(spec.stages), vgg.STAGES),
    )
    if spec.head == "pool":
        raise ValueError("model.encoder.head=pool, where dense is published")
    return vgg.ROWS["keras" if _of_keras(config) else "torchvision"](spec)


def _of_keras(config: ConfigDict) -> bool:
    """Whether the weights are in Keras's layout: it tells how pictures are preprocessed."""
    return config.model.preprocessing == "keras" and not config.model.encoder.batch_norm


# A CLIP's networks -> its published parts.
WHOLE = {"text_encoder": "text_model", "vision_encoder": "vision_model", "projections": ""}
NETWORKS: dict[str, Callable[[ConfigDict], Any]] = {
    "unet": _unet,
    "autoencoder": _autoencoder,
    "text_encoder": _text_encoder,
    "vision_encoder": _vision_encoder,
    "clip": _clip,
    "decoder": _decoder,
    "encoder": _encoder,
}

if __name__ == "__main__":
    main()
