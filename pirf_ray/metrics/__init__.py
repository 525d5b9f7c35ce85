"""Metrics of sample sets, and the cost of computations. No files, no Ray."""
