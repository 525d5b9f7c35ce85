"""Checkpoints of other codes, read without running anything of theirs."""
