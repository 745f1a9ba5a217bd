"""Quantizing: calibrated ranges, per-channel weights, Q/DQ placed by measurement, and a gate."""
