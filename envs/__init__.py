"""Physics and the denoising process. Importing this package registers every PDE's environment with Gymnasium.

``gymnasium.make("envs:Burgers-v0")`` and ``gymnasium.make_vec("envs:Burgers-v0", num_envs=4)`` import it by themselves.
"""

import gymnasium

from envs.pdes import REGISTRY

for _env_id in REGISTRY:
    gymnasium.register(
        id=_env_id,
        entry_point="envs.environments:DenoisingEnv",
        vector_entry_point="envs.environments:DenoisingVectorEnv",
        kwargs={"env_id": _env_id},
    )
