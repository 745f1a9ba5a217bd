"""One pass over calibration images: histograms, second moments, and what noise in a tensor costs."""
