"""Vendors' tool chains, each in a Python environment of its own outside the project's."""
