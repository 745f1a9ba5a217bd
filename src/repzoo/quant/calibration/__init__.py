"""One pass over calibration images: histograms, moments, and each layer's noise sensitivity."""
