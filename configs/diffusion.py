"""Text to image: a diffusion model of captioned pictures.

    python -m vision_lang.main --config=configs/diffusion.py
    python -m vision_lang.main --config=configs/diffusion.py:data=folder --config.data.path=DIR
    python -m vision_lang.main --config=configs/diffusion.py:data=fashion_mnist,condition=label \
        --config.data.path=DIR_WITH_IDX_FILES

    python -m vision_lang.main --config=configs/diffusion.py:autoencoder=small \
        --config.init.autoencoder=RUN --config.data.cache_latents=true

Arguments behind the colon: tiny (seconds on a CPU), data (any name of config.data.name), condition
(text | label), size (rows of models.unet.UNETS, .text_encoder.TEXT_ENCODERS, .sketch.SKETCHES,
.autoencoder.AUTOENCODERS), and in place of the size's own: text (also a row of
models.t5_encoder.T5_ENCODERS) and autoencoder, whose latents are then diffused; averages (decay,
or post_hoc: of what is then stored along the training, --weights=std=0.12 makes the average of any
length).

The last of these trains on an autoencoder's latents, which a run of configs/autoencoder.py or of
vision_lang.convert has learned: config.model.autoencoder.scaling should be one over their
deviation, which the autoencoder's run measures, and the first start says.

Another run's networks are fine-tuned by config.init and config.optimizer: a group may learn slower,
what is frozen does not learn. The text encoder of RUN, whose words are in RUN/tokenizer.json, and
at a tenth of their rate the blocks of its U-Net:

    python -m vision_lang.main --config=configs/diffusion.py --config.init.text_encoder=RUN \
        --config.init.unet=RUN --config.init.sketch=RUN \
        --config.data.tokenizer=RUN/tokenizer.json \
        --config.optimizer.frozen="('text_encoder/.*',)" \
        --config.optimizer.groups.blocks.learning_rate_scale=0.35

The target: 95 % of one- and two-object prompts right after ten minutes on two CPU cores; README.md
says what is reached. What was tried, in throw-away runs that guided the search and
publish nothing: the validation error of x0 in the four quarters of t, from little to much noise.
W is the weight of x0's error (<=: at most); all but the first two with Muon.

On a first world, x and edm predictions, Adam, 19,200 images; then Muon in place of Adam:

    prediction  widths    depth  patch  batch  time mean  W             error                s/image
    x (Adam)    32,64,96  0,1,1  2      16     1.2        1             .029 .026 .041 .122   .016
    edm (Adam)  32,32,128 0,0,1  2      32     0.8        SNR+1 <= 20   .018 .059 .060 .130   .009
    edm         64        1      4      64     0.8        SNR+1 <= 20   .017 .054 .051 .118   .008
    x           64        1      4      64     0.8        SNR+1 <= 4    .021 .022 .035 .117   .008
    x           64        1      4      32     0.8        t^-2  <= 40   .011 .014 .031 .107   .012
    x           16,32,64  0,0,1  1      32     0.4        t^-2  <= 40   .004 .009 .033 .127   .018

With x, 64, 1, 4, 32, SNR+1 <= 2 and shapes that differ more, objects in five places an axis: t's
logit as (share of the training, mean, deviation), the weight of the gradient, the errors after that
many steps, and how many of 256 prompts were right:

    course of the times                        gradient   steps  error                right
    (0, 1.4, 1) (1, -.3, 1)                    0          1,500  .006 .007 .017 .115   2 %
    (.2, .2, .3) (.4, 1, .3) (1, -.2, .8)      0          1,500  .006 .006 .014 .131   5 %
    (.3, .6, .4) (.6, .9, .4) (1, -.2, .9)     6          1,500  .003 .003 .010 .135  24 %
    (0, .6, .3) (.5, .9, .8) (1, 1.1, 1.6)     6          2,400  .002 .002 .008 .125  25 %
    (0, .6, .3) (.4, .9, .8) (1, 1.2, 1.5)     12 alpha   1,500  .003 .003 .011 .130  20 %

What held the words back. The text encoder with the sketch alone, no U-Net: how much the sketch's
error rises, in 1e-4, when the relation words of two objects' captions are exchanged (400 is about
all there is), after so many steps of 32. Each row has what stands above it, too.

    the text encoder                                                 steps        rise
    near words first (slopes 1.5 and .5), tables at 120 times        1,200        -0.2
    two of four heads see far (slopes .1), layers at 3 times         1,200        17
    the picture's mean error counts a twentieth                      900, 1,200   277, 356
    far heads without a slope, near ones with 1                      900, 1,200   346, 381
    the same, the learning rate at 0 after 900 steps, as below       600, 900     13, 92
    positions of deviation .05 instead of .5, and as much slower     600, 900     195, 328
    tables at 12 times                                               450, 600     294, 376
    two layers instead of three                                      300, 450     64, 345

With the U-Net: without a sketch nothing of the relation was read after 900 steps; with one that
counts once, nothing after 600; ten times, 350 after 600, and 258 by the U-Net at t = .88. That
recipe drew 81 % right after 1,800 steps, as the product 77 %, where 54 % were right before.

  * Muon needs half the steps of Adam. Smaller batches learn more from each image and cost more.
  * Predicting x0 is far better at medium noise than predictions that hold the noise, which a narrow
    network cannot pass on. A skip connection that acts at little noise alone leaves grain.
  * The error's gradient: in the plain error the shape that a caption names is next to nothing
    beside colours and layout, and the plain error itself was a third lower with it everywhere.
  * The text: with one token per object in place of a caption the same network drew 31 % right after
    450 steps. So it was the way from words to the U-Net that was slow, not the drawing.
  * Half of the captions leave the background open, and its colour alone is most of the error at
    much noise: noise for everything else that is to be learned there.
  * The U-Net's loss tells the text encoder little of what is decided at much noise; the sketch's
    tells it at every step.
  * No gain from 550 first steps of text and sketch alone, though they take a seventh of the time:
    1,650 steps of the U-Net then reach the errors of 1,550 without (77 and 78 % right in two runs,
    which also had other times and dropped fewer captions). As a branch of one program (lax.cond)
    they made every step several times slower on a CPU.
  * Steps are what is left. The exact denoiser (experiments/exact.py) in the network's place draws
    all prompts right in the same 30 steps; so does the network above t = .7 with the exact one
    below, which may mend what it finds. Most mistakes are made below t = .9. The squared distance
    from the exact mean, but for the picture's mean, in 1e-4, two objects; and of 512 prompts the
    part right (with 100 steps of sampling as with 30):

        steps    t = .6   .7   .8   .9    right
        1,800        31   54   94  172     80 %   a bar in place of the plus, no hints
        3,600         9   25   47  131     95 %   one object 99, two 91, three 61 %

  * The rate falls in a straight line: after 900 steps .240 .173 .112 .127, with a cosine .261 .189
    .120 .130. Each example of a batch has its own slice of the times: after 600, 1 to 4 % less.
  * The sampler may mend what the network got wrong: the more of the noise is new at each step, the
    more is forgotten. One network of 3,600 steps (with a cosine), the part right of 512 prompts,
    and the perplexity over places of 256 draws of "a red circle left of a blue square":

        eta      .5     .8     1      1.5    2      2.5    3
        right    91     93     94     96     97     97 %
        places                 7.4    6.8    5.3           4.9

    The default was chosen on 1,000 prompts of the validation split (2,700 steps): 91.0 % at 1, 93.3
    at 1.5, 95.1 at 2, 95.8 at 3; 95.9 at 2 with guidance 1.2, which costs twice as much, and 88.0
    with guidance 1.5.

  * A step as fast as it goes: on two CPU devices of one core each, a quarter less time than with
    two threads; Muon's matrices shared among them, a tenth less; two heads for four, 6 % less. No
    gain by q, k and v as one product, bfloat16, one head; a width of 48 is 12 % faster only.
  * A bar was the sixth shape before: cut short it is a smaller bar, so the oracle had to be twice
    as strict with it, and 46 % of pairs with a bar were right, 73 % of others.
  * What is learned at much noise, where most of the error cannot be avoided, drowns what is learned
    at little noise, and the reverse; a narrow range of times learns fastest. So the range opens
    slowly.
  * Guidance misleads at much noise: it draws one object too many. With the sketch, 256 prompts of
    one network, ddpm: guidance 1.5 81 %, 1 81 %, 1 with shift 3 83 %, with shift 5 80 %, 2 below
    t = .9 alone 59 %; dpmpp_2m, guidance 1, shift 3: 75 %.
  * No gain: patches of 2 or 1 pixels or twice the width in the same time; two or three levels; two
    transformer layers where there is one, batches of 16, twice the learning rate, residual branches
    that do not start at zero, time that scales and shifts.
  * No gain with the sketch either (one run each, 1,800 steps or what takes as long; 80 % without):
    times narrowly about t = .77 at the end, 80 %; width 96, 73 %; patches of 8 pixels, 128 wide,
    larger errors after 900 steps; its own first guess as input in half of the batch, 77 % (60 % if
    the sampler hands the last guess on: the sketch is lost); noisy pictures made from its own
    guess at more noise, 77 %; guided away from the network of step 900 by .5, 1 and 2: 81, 77 and
    51 %; Muon for the first and last convolution, 1.8 times the rate: larger errors after 600;
    Muon's updates normalised by neuron (Li et al. 2025): the same errors after 900.
"""

import dataclasses

from ml_collections import ConfigDict

from configs import common
from vision_lang.data import presets
from vision_lang.errors import choose
from vision_lang.evaluators.generation import Generation
from vision_lang.models.autoencoder import AUTOENCODERS
from vision_lang.models.sketch import SKETCHES
from vision_lang.models.t5_encoder import EMBEDDING_STD, T5_ENCODERS, T5Spec
from vision_lang.models.text_encoder import TEXT_ENCODERS, TextSpec
from vision_lang.models.unet import UNETS

# size -> (U-Net, text encoder, sketch, autoencoder, patch)
SIZES = {
    "tiny": ("tiny", "tiny", "tiny", "none", 2),
    "small": ("small", "small", "small", "none", 4),
    "sd15": ("sd15", "clip_l14", "none", "sd", 1),
    "sd21": ("sd21", "openclip_h14", "none", "sd", 1),
}
# What the fields mean: vision_lang/training/averages.py.
AVERAGES = {
    "decay": {"ema": {"decay": 0.995}},
    "post_hoc": {"short": {"std": 0.05}, "long": {"std": 0.1}},
}
TEXTS: dict[str, TextSpec | T5Spec] = {**TEXT_ENCODERS, **T5_ENCODERS}
SD_SCALING = 0.18215  # of Stable Diffusion's latents
T5_ROWS = 32_128  # of the published token tables: more than the tokenizer's 32,100 tokens
PROMPTS = (
    "two objects: a red circle above a blue square",
    "one large green cross on a white background",
    "a pair of shapes: a small yellow ring left of a large purple plus",
    "there are two objects, a cyan triangle to the right of an orange square on a black background",
    "one small pink circle",
    "three objects: a red square left of a blue triangle, and a yellow circle",
    "two shapes: a green cross below a pink ring on a brown background",
    "a single orange triangle on a grey backdrop",
)


def get_config(arg: str = "") -> ConfigDict:
    """Returns the config; see the module's docstring."""
    given = common.parse_arg(
        arg, tiny=False, data="shapes", condition="text", size="small", text="", autoencoder="",
        averages="decay",
    )  # fmt: skip
    config = common.base(given.data)
    config.task = "diffusion"
    config.condition = given.condition  # "text" | "label"
    config.caption_drop = 0.05  # share of examples that learn without condition, for guidance
    config.text_mask = "masked"  # padding is never attended; "none" for imported models

    labels = given.condition == "label"  # there is no language to learn
    config.steps = 2_000 if labels else 2_700
    config.batch_size = 32
    config.eval_every = config.steps // 2
    config.save_every = 1_000 if labels else 900

    size = "tiny" if given.tiny else given.size
    unet, text, sketch, autoencoder, patch = choose(SIZES, size, "size")
    text, autoencoder = given.text or text, given.autoencoder or autoencoder
    latents = choose(AUTOENCODERS, autoencoder, "autoencoder")
    if latents.widths:
        patch = 1
    model = config.model = ConfigDict()
    model.unet = ConfigDict(dataclasses.asdict(UNETS[unet]))
    # CLIP's text tower, or T5's encoder. config.init.text_encoder=RUN has its weights.
    model.text = ConfigDict(dataclasses.asdict(choose(TEXTS, text, "text")))
    if text in T5_ENCODERS:
        # rows of the token table; 0: the tokenizer's tokens
        model.text.vocab_size = 0 if text == "t5_tiny" else T5_ROWS
    if given.condition == "label" or latents.widths:
        sketch = "none"  # it reads texts, and is of pixels
    model.sketch = ConfigDict(dataclasses.asdict(SKETCHES[sketch]))
    # widths=() are pixels; otherwise its latents are diffused. config.init.autoencoder=RUN has its
    # weights, which config.optimizer.frozen must name: nothing is learned there.
    model.autoencoder = ConfigDict(dataclasses.asdict(latents))
    model.autoencoder.scaling = SD_SCALING if autoencoder == "sd" else 1.0
    model.autoencoder.shift = 0.0
    # Encode each picture once, before the first step, and keep its latents under data.dir.
    config.data.cache_latents = False
    model.patch = patch  # pixels of a side that become channels: 2 makes 32x32x3 16x16x12
    model.dtype = "float32"  # of the computation: "float32" | "bfloat16"; parameters stay float32
    model.remat = False  # recompute activations in the backward pass: less memory, more time
    model.fused_attention = False  # cuDNN's kernel; wants a GPU and bfloat16

    diffusion = config.diffusion = ConfigDict()
    diffusion.schedule = "flow"  # a row of diffusion.schedules.SCHEDULES
    diffusion.prediction = "x"  # a row of diffusion.prediction.PREDICTIONS
    diffusion.weighting = "snr_plus_one"  # a row of diffusion.weighting.WEIGHTINGS
    diffusion.largest_weight = 2.0  # weighting=flow, min_snr and snr_plus_one alone
    diffusion.gradient_weight = 20.0  # times alpha: of the error's spatial gradient; 0: plain error
    # of the square of the picture's mean error at t = 1; rises to 1 with alpha; 1: plain error
    diffusion.mean_weight = 0.05
    diffusion.sketch_weight = 10.0  # of the sketch's squared error
    diffusion.sigmoid_bias = 2.0  # weighting=sigmoid alone
    diffusion.time_sampling = "logit_normal"  # a row of diffusion.time_sampling.TIME_SAMPLINGS
    # logit_normal and log_normal alone; rows (share of the training, mean, deviation)
    diffusion.time_course = ((0.0, 0.9, 0.4), (0.3, 1.3, 0.8), (1.0, 1.6, 1.4))

    # each example of a batch draws from its own slice of the times; these two alone as well
    diffusion.time_stratified = True

    sampling = config.sampling = ConfigDict()  # for the evaluators, and generate's defaults
    sampling.sampler = "ddim"  # a row of diffusion.samplers.SAMPLERS
    sampling.steps = 30
    # 1 = the conditional model. Of Fashion-MNIST a classifier recognises 80 % with 1, 94 % with 2.
    sampling.guidance = 2.0 if labels else 1.0
    sampling.interval = (0.0, 1.0)  # the t between which guidance acts
    sampling.rescale = 0.0  # of the guided image to the conditional one's contrast
    sampling.spacing = "uniform"  # a row of diffusion.spacing.SPACINGS
    sampling.shift = 3.0  # > 1: more steps at high noise
    # x0 to [-1, 1]: "static" | "none" | "dynamic"; latents have no such bounds
    sampling.clip = "none" if latents.widths else "static"
    # new noise of sampler=ddim: 0 none, 1 ancestral (ddpm), above: early mistakes are forgotten
    # (and the likelier pictures favoured, which only the oracle of the built-in world rewards)
    sampling.eta = 3.0 if presets.is_shapes(given.data) else 1.0
    # the last step ends at the clean image, "zero", or at training's least noise, "sigma_min"
    sampling.final_sigma = "zero"  # a row of diffusion.spacing.FINAL_SIGMAS

    optimizer = config.optimizer = common.optimizer(learning_rate=2.5e-3)
    blocks = r"unet/.*(resnets|attentions)_\d+/.*kernel|sketch/layers_\d+/.*kernel"
    texts = r"text_encoder/(layers|block)_\d+/.*kernel"
    words = r"text_encoder/(token_embedding|shared)/embedding"
    deviation = EMBEDDING_STD if text in T5_ENCODERS else model.text.embedding_std
    optimizer.groups = ConfigDict(
        {  # each parameter's path must match exactly one pattern; rule: of training.optimizer.RULES
            "blocks": common.muon(blocks, learning_rate_scale=3.5),
            "texts": common.muon(texts, learning_rate_scale=1.5),
            # A step touches few rows of the table, and its rows are large.
            "words": common.adamw(words, learning_rate_scale=24 * deviation),
            "matrices": common.adamw(f"(?!{blocks}|{texts}).*/kernel", weight_decay=0.01),
            "others": common.adamw(f"(?!{words}).*/(bias|scale|embedding)"),
        }
    )
    if latents.widths:
        optimizer.frozen = ("autoencoder/.*",)
    config.ema = ConfigDict(choose(AVERAGES, given.averages, "averages"))
    if given.averages == "post_hoc":  # each checkpoint is needed to make others of
        config.save_every, config.keep_period = (config.steps // 27,) * 2
    # "RUN[@step][:ema|raw]" each
    config.init = ConfigDict({"text_encoder": "", "unet": "", "sketch": "", "autoencoder": ""})

    config.evaluators = evaluators(given.data)
    if given.tiny:
        shrink(config)
    return config


def evaluators(data: str) -> ConfigDict:
    """The evaluators, and what each needs; a row of evaluators.EVALUATORS is its `kind`."""
    made = {
        "validation": {"kind": "validation_loss", "split": "validation", "batch_size": 64},
        "samples": {
            "kind": "samples",
            "prompts": PROMPTS if presets.is_shapes(data) else (),
            "count": 16,
            "columns": 8,
            "device_batch": 8,
        },
        # Other runs that judge what is drawn; '' = none. Fields: evaluators/generation.py.
        "generation": dataclasses.asdict(Generation()),
    }
    if presets.is_shapes(data):
        made["oracle"] = {
            "kind": "shapes_oracle",
            "splits": ("test", "test_unseen"),
            "count": 32,
            "final_count": 256,
            "device_batch": 32,
        }
    return ConfigDict(made)


def shrink(config: ConfigDict) -> None:
    """A run of seconds that walks through every part."""
    common.shrink(config)
    config.sampling.steps = 3
    config.evaluators.validation.batch_size = 16
    config.evaluators.samples.update(count=4, columns=4, device_batch=4)
    config.evaluators.generation.update(count=4, final_count=8, device_batch=8)
    if "oracle" in config.evaluators:
        config.evaluators.oracle.update(count=4, final_count=8, device_batch=8)
