"""Captioning: a VGG encoder and a text decoder that describe a picture.

    python -m vision_lang.main --config=configs/captioning.py
    python -m vision_lang.main --config=configs/captioning.py:data=folder --config.data.path=DIR

Arguments behind the colon: tiny (seconds on a CPU), data (any name of config.data.name), size (a
row of models.vgg.VGGS), decoder (a row of models.text_decoder.TEXT_DECODERS). The encoder learns
too; --config.init.encoder=RUN begins with another run's, and
'--config.optimizer.frozen=("encoder/.*",)' leaves it as it is.

What was tried on the built-in world, one run each, batches of 64: the training loss after so many
steps, and the part of 256 validation scenes that were described right. What comes last is how two
objects stand to each other: until then the loss lies on a plateau at .70, and 5 of 10 are right.

    decoder's matrices   init   attended map      200    500    700    1,000    right
    AdamW                .02    8x8 (conv3_2)    1.07    .74    .72    .70      58 % after 1,000
    Muon                 .02    8x8               .90    .72    .71
    Muon                 .02    4x4 (conv4_2)     .99    .74
    Muon                 .09    8x8               .85    .73    .70    .67      79 % after 1,000
    ... three layers of width 96                         .71           .67      63 % of 500
    ... the loss per token (*)                           .73           .67      69 % of 500
    ... queries, keys, values split (**)                 .71           .65      82 % of 600
    ... ... a rate of 1e-3                               .71           .65      71 % of 600
    ... ... (*)                                                                 58 % of 600
    ... four convolutions of 8x8, conv3_4                .72           .67      64 % of 600

(*) A throw-away change, no option: each text's sum over its tokens in place of their mean.
(**) Muon takes GPT-2's kernels of queries, keys and values apart. Together, the gradients of the
values, much the largest as long as nobody knows where to look, decide where all of them go.

When the plateau ends differs between runs that are the same but for a schedule: of two objects, how
they stand was right in 96 % after 1,000 steps that end at a rate of 0, and in 66 % after the first
1,000 of 3,000. On the plateau the network knows whether they stand beside or above each other, and
nothing of which is which: the words of the first object are not yet used to find it. Muon for the
encoder, 8 heads, a momentum of .98, an encoder that has learnt to match, and coordinates of one
octave were still on it when they were stopped, after 600 to 800 steps.

What ends it sooner: with features that were given instead of learnt (a throw-away script; places
know their object), so that only the decoder had to learn, two objects in the plainest words took
130 steps, in all the words of a caption 200, up to three in the plainest words 250, and both more
than 500; 200 again where the words of relations, one of 17, counted five times. Their gradient
drowns in that of words that a caption is free to choose. Positions that began as sines, and four
captions of each of a quarter of the pictures, did not help. Hence config.word_weights: 78 % of 256
right after the first 1,000 of 3,000 steps, 70 % without; after 2,000, 85 and 86 %; in the end 93.5
and 93.1 % of test, 90.9 and 88.1 % of test_unseen. Of what is wrong then half names one object
twice, in which relations have no part.

Batches of 32 learn as much from each example as those of 64 (.73 after 32,000 and .71 after 45,000
examples), and beams of 4 describe no better than greedy decoding (91.2 and 91.5 % of 600 after
3,000 steps): it is examples that lack.
"""

import dataclasses

from ml_collections import ConfigDict

from configs import common
from vision_lang.data import presets
from vision_lang.errors import choose
from vision_lang.models.text_decoder import TEXT_DECODERS
from vision_lang.models.vgg import VGGS
from vision_lang.tasks.augmentation import Augmentation
from vision_lang.tasks.captioning import Decoding

# The words of the built-in world that tell where things stand.
RELATIONS = ("left", "right", "above", "below", "over", "under")


def get_config(arg: str = "") -> ConfigDict:
    """Returns the config; see the module's docstring."""
    given = common.parse_arg(arg, tiny=False, data="shapes", size="11", decoder="mini")
    config = common.base(given.data)
    config.task = "captioning"

    config.steps = 3_000
    config.batch_size = 64
    config.eval_every = 1_000
    config.save_every = 1_000

    model = config.model = ConfigDict()
    size = "tiny" if given.tiny else given.size
    # What the fields mean: vision_lang/models/vgg.py. A quarter of the paper's widths.
    model.encoder = ConfigDict(dataclasses.asdict(choose(VGGS, size, "size")))
    model.encoder.update(width=0.25, batch_norm=True, head="none")
    # the encoder's intermediate whose places the decoder attends
    model.stage = "pool1" if given.tiny else "conv3_2"
    spec = choose(TEXT_DECODERS, "tiny" if given.tiny else given.decoder, "decoder")
    model.decoder = ConfigDict(dataclasses.asdict(spec))
    model.preprocessing = "symmetric"  # a row of tasks.preprocessing.PREPROCESSINGS
    model.dtype = "float32"  # of the computation: "float32" | "bfloat16"; parameters stay float32

    config.label_smoothing = 0.0
    # word -> how many times its loss counts; a word is a token of the tokenizer. See above.
    words = RELATIONS if presets.is_shapes(given.data) and not given.tiny else ()
    config.word_weights = ConfigDict(dict.fromkeys(words, 5.0))
    # What the fields mean: vision_lang/tasks/augmentation.py.
    config.augmentation = ConfigDict(dataclasses.asdict(Augmentation()))
    # For the evaluators, and describe's defaults: vision_lang/tasks/captioning.py.
    config.decoding = ConfigDict(dataclasses.asdict(Decoding()))

    optimizer = config.optimizer = common.optimizer(learning_rate=2e-3)
    layers = r"decoder/h_\d+"
    joined = f"{layers}/attn/c_attn/kernel"
    crossing = f"{layers}/crossattention/c_attn/kernel"
    single = f"(?!.*/c_attn/){layers}/.*kernel"
    optimizer.groups = ConfigDict(
        {  # each parameter's path must match exactly one pattern; rule: of training.optimizer.RULES
            "encoder": common.adamw("encoder/.*/kernel", weight_decay=0.01),
            "queries_keys_values": common.muon(joined, parts=3),
            "keys_values": common.muon(crossing, parts=2),
            "blocks": common.muon(single),
            "matrices": common.adamw("(?!encoder/|decoder/).*/kernel", weight_decay=0.01),
            "others": common.adamw(".*/(bias|scale|embedding)"),
        }
    )
    config.ema = ConfigDict()  # name -> {"decay": ...}; batch statistics follow the raw weights
    # "RUN[@step][:ema|raw]" each
    config.init = ConfigDict({"encoder": "", "decoder": ""})
    config.init_except = r"encoder/(logits|fc\d+)/.*"  # this encoder has no head

    shapes = presets.is_shapes(given.data)
    config.evaluators = ConfigDict(
        {
            "validation": {"kind": "validation_loss", "split": "validation", "batch_size": 64},
            "captions": {
                "kind": "captions",
                "splits": ("validation",),
                "final_splits": ("test", "test_unseen") if shapes else ("validation", "test"),
                "count": 256,
                "final_count": 0,  # of each split, evenly spaced; 0: all
                "batch_size": 64,
                "shown": 8,  # pictures with their captions
            },
        }
    )
    if given.tiny:
        common.shrink(config)
        config.evaluators.validation.batch_size = 16
        config.evaluators.captions.update(batch_size=8, count=8, final_count=16, shown=4)
    return config
