"""Sweeps over the settings of fine-tuning runs, with Ray Tune and Optuna.

The package belongs to pirf_ray, is installed with it and uses its public functions only. ``from ray import tune`` is another
package: this one always imports it as ``ray_tune``.
"""
