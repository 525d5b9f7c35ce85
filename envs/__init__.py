"""Physics and the denoising process of pirf_ray: PDEs, rewards, data files and Gymnasium environments.

This package is a part of the distribution pirf_ray. Importing it registers the environments of every PDE with Gymnasium, the
PDEs of other packages and files (envs.plugins) included. ``gymnasium.make("pirf_ray:Burgers-v0")`` and
``gymnasium.make_vec("pirf_ray:Burgers-v0", num_envs=4)`` import this package by themselves.
"""

from envs.plugins import load_plugins

load_plugins()
