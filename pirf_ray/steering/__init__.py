"""Guidance while sampling, and finishers of samples. No weights change here."""
