"""Data: pictures with words, from any source, as batches of arrays.

  sources.py    a data set named in a config -> prepared splits with random access
  presets.py    what is known about public data sets: keys, splits, crops, phrases
  pipeline.py   a split -> batches, each a pure function of (seed, step); prefetch to the device
  augment.py    any picture -> a square of the wanted size
  images.py     encoded bytes -> RGB array
  tokenizer.py  captions <-> token ids
  builders/     TFDS builders: the shapes world, any folder of pictures, MNIST's IDX files; latents

Knows no model. Needs no TensorFlow.
"""
