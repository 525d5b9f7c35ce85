"""Grids, difference and spectral operators, dual norms, time stepping, random fields and counter-based random numbers."""
