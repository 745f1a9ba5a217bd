"""Quantization parameters: ranges, scales, GPTQ rounding, bias correction, and the QDQ writer."""
