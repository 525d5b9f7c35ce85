"""Readers of other codes' checkpoints that run no code of these checkpoints."""
