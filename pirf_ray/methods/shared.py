"""Settings that several recipes share."""

from typing import Any

FRESH: dict[str, Any] = {"scope": "all", "strategy": "fresh", "reuse": 1, "staleness": 0, "chunk": 8}
"""The tuned weights act at every sigma, so every update makes its own prefixes with them: exact, M = 1, S = 0."""
BATCH: dict[str, Any] = {"batch": 8, "micro_batch": 8, "workers": 1, "schedule": "cosine", "ema_decay": 0.95}
"""Many small updates that come to rest do best at budgets of minutes."""
PUBLISHED: dict[str, Any] = {**FRESH, **BATCH, "regularizers": ("l2",), "guard": "off"}
"""Published methods have no output anchor and no guard."""
BY_REWARD: dict[str, Any] = {**PUBLISHED, "levels": 0, "truncation": 4, "learning_rate": 1e-4, "l2": 1.0}
"""All layers learn from the log reward with conditions, held by lambda ||theta - theta_0||^2."""
ON_DATA: dict[str, Any] = {
    **PUBLISHED,
    "batch": 16,
    "micro_batch": 16,
    "chunk": 16,
    "ema_decay": 0.99,
    "clip_norm": 1.0,
    "truncation": 1,
    "regularizers": (),
}
"""Training on fields of the solver, which needs no regularizer and replays no steps."""
CHAINS: dict[str, Any] = {
    **PUBLISHED,
    "solver": "stochastic",
    "num_steps": 10,
    "truncation": 0,
    "levels": 0,
    "batch": 16,
    "micro_batch": 16,
    "chunk": 8,
    "group": 8,
    "regularizers": (),
}
"""Training on whole chains of stochastic steps, with the log densities of the steps."""
SAMPLES: dict[str, Any] = {
    **PUBLISHED,
    "truncation": 0,
    "levels": 0,
    "batch": 16,
    "micro_batch": 16,
    "chunk": 8,
    "regularizers": (),
}
"""Training on finished samples at every noise level."""
