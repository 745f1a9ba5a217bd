"""Other people's quantizers behind one registry, to compare with."""
