"""ONNX graphs: made, folded, certified, counted."""
