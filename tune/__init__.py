"""Hyper-parameter sweeps over pirf_ray's runs (Ray Tune with Optuna). Uses pirf_ray's public functions only."""
