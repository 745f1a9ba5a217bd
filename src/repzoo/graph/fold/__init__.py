"""The fold: linear pieces of a graph become one cheaper node."""
