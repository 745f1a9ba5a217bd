"""What the quantizer knows of a graph: layers, channels, activations, what may run in INT8."""
