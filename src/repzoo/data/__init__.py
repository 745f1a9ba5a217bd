"""Images with labels, and how they become a model's input."""
