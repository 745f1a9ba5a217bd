"""Measuring: accuracy, latency, and the statistics and host facts that make them believable."""
