"""Decisions by measurement: the placement search, the accuracy gate and the ladder."""
