"""Experiments: ``python -m pirf_ray.studies.NAME``."""
