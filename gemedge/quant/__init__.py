"""From a float model and data to integers: calibrate, quantize, simulate."""
