"""Rewrites of the float graph that make it easier to quantize, and the ladder's stages as data."""
