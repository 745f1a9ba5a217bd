"""What the quantizer knows of a graph: its layers, channels, activations, and what may run in INT8."""
