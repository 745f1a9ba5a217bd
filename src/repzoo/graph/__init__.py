"""ONNX graphs: export, folding, certificates and costs."""
