"""Lint: what is wrong in a vendor's configuration, a pack, or a calibration folder.

A rule is a small function from a parsed file and the facts of the model to findings. Each tool has
a module with its rules; keys and values that a tool accepts are data in `keys/`. Nothing that is
read is executed, and sizes are bounded before a file is parsed.
"""
