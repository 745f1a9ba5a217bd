"""Packs: a folder with all that a vendor's tool chain needs, one target a module."""
