"""Grids, operators, transforms and counter-based random numbers."""
