"""vision_lang: images become words and words become images, in JAX."""
