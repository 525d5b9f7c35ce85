"""The only place that imports Ray: rollout actors, weight sync, the Ray Train loop.

Importing it sets Ray's switches first: no usage reports, token authentication, and, where no RAY_ADDRESS names a
cluster to join, a node address on loopback, to which Ray then binds its ports (values that the user has set stand).
"""

import os

if not os.environ.get("RAY_ADDRESS"):
    # Despite its name this is the switch of every platform between a loopback and a reachable node address.
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
for _name, _value in {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",
    "RAY_TRAIN_V2_ENABLED": "1",
}.items():
    os.environ.setdefault(_name, _value)
