"""The proof that a folded graph equals its training form. It shares no reasoning with the fold."""
