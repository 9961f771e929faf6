"""Networks: known architectures in Flax linen, sized by tables."""
