"""Rollouts: the plan of samples, prefixes and their replay, sources of prefixes."""
