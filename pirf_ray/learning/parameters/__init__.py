"""The learning parameters: whole layers, or low-rank factors."""
