"""TFDS builders that need no TensorFlow, neither to prepare a data set nor to read it."""
