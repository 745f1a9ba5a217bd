"""The proof that a folded graph equals its training form."""
