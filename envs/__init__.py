"""Physics and the denoising process. Importing this package registers every PDE's environment with Gymnasium.

``gymnasium.make("envs:Burgers-v0")`` and ``gymnasium.make_vec("envs:Burgers-v0", num_envs=4)`` import it by themselves.
PDEs of other packages and files (envs.plugins) are registered too.
"""

from envs.plugins import load_plugins

load_plugins()
