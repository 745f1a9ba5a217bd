"""What is fast and how we know: ratios from interleaved rounds, beside public tools."""
