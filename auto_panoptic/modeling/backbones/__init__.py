"""Backbones with searched blocks; ``builders`` registers them."""
