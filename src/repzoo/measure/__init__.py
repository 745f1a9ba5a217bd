"""Measurements of accuracy and latency, with the statistics and host facts needed to trust them."""
