"""Four objectives, a surrogate and their proof: ``python tests/support/proof.py gaussian`` and ``... poisson OUT``.

``gaussian``: the exact answer in 64 dimensions, in this process. ``poisson``: Poisson 32x32 with the log-likelihood of 31 noisy
observations, through Ray actors; the reward is a black box in another process, but for adjoint matching, which needs its gradient.
Before them stand the competitors that need no training. Both print a table. Run directories in OUT are kept, and a run that is
there already is only measured again.
"""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from envs.observations import ObservationReward, PointObservations, simulate_observations
from envs.pdes import make_pde
from gaussian_problem import problem
from gaussian_training import exact, settings, train
from pirf_ray.diffusion.sampling import SamplerSettings
from pirf_ray.metrics.cost import Meter
from pirf_ray.metrics.distances import energy_distance_squared_unbiased
from pirf_ray.metrics.exact import expected_reward
from pirf_ray.metrics.exact_chains import propagate, riccati, riccati_without_future_kl
from pirf_ray.metrics.statistics import amplitude_ratio
from pirf_ray.steering.base import STEERERS, steer
from pirf_ray.steering.best_of_n import BestOfNSettings
from pirf_ray.steering.context import SteeringContext
from pirf_ray.steering.svdd import SVDDSettings
from pirf_ray.training.models import load_model
from places import ROOT

FAST = {"learning_rate": 3e-2, "schedule": "cosine"}
RETURN = {"objective": "policy-gradient", "kl": 1.0, "normalize": False, "group": 256}
GAUSSIAN: dict[str, tuple[str, int, dict[str, Any]]] = {
    "policy gradient, KL in return": ("optimum", 700, {**RETURN, "kl_in_return": True}),
    "policy gradient, published KL": ("without future", 700, RETURN),
    "adjoint matching": ("optimum", 250, {"objective": "adjoint"}),
    "pathwise, path KL": ("optimum", 250, {"objective": "pathwise", "path_kl": 1.0}),
    "preference (no tilt)": ("optimum", 200, {"objective": "preference", "preference_beta": 0.5, "group": 2}),
    "forward process (no tilt)": ("optimum", 200, {"objective": "forward-process", "group": 256}),
    "surrogate (no tilt)": ("optimum", 150, {"objective": "surrogate", "surrogate_kl": 0.1, "surrogate_rate": 3e-3}),
}
"""Name: the law that it is graded against, updates, settings."""
POINTS, NOISE = 31, 0.2
COMMON = {
    "env": "Poisson-v0",
    "workers": "1",
    "worker-cpus": "0.8",
    "corrections": "0",
    "guard": "watch",
    "guard-samples": "32",
    "samples": "64",
    "real": "64",
}
FEW = {"num-steps": "12", "solver": "2m"}
POISSON: dict[str, dict[str, str]] = {
    "grpo-exact": {"updates": "60", "kl": "30", "learning-rate": "1e-4"},
    "adjoint-matching": {"updates": "40", "temperature": "30", "learning-rate": "5e-5"},
    "diffusion-dpo": {"updates": "60", **FEW},
    "diffusion-nft": {"updates": "60", **FEW},
    "tdm-r1": {"updates": "60", "learning-rate": "3e-5"},
}
"""Recipe and flags beside it. The reward's standard deviation is about 340, so 30 is a temperature of a tenth of it."""
MEASURED = 256
MODULE = '''"""The observations' reward, with its gradient."""
from pathlib import Path
from envs.observations import ObservationReward, PointObservations
likelihood = ObservationReward(PointObservations.load(Path({file!r})))
'''


def gaussian() -> None:
    """Train and print the errors of mean and covariance against the law that each objective is graded by."""
    own, chain = exact(settings())
    start = own.start(own.process())
    laws = {
        "base": propagate(chain, start),
        "optimum": propagate(riccati(chain, *own.reward), start),
        "without future": propagate(riccati_without_future_kl(chain, *own.reward), start),
    }
    rewards = {name: expected_reward(law, *own.reward).item() for name, law in laws.items()}
    print("E[r]: " + ", ".join(f"{name} {value:.2f}" for name, value in rewards.items()))
    for name, (law, updates, changes) in GAUSSIAN.items():
        differentiable = changes["objective"] in ("adjoint", "pathwise")
        with Meter() as meter:
            graded = train(updates=updates, differentiable=differentiable, **changes, **FAST)
        mean, covariance = graded.errors(laws[law])
        forwards = meter.cost.units / updates / 256
        file = ROOT / "pirf_ray/learning/objectives" / f"{changes['objective'].replace('-', '_')}.py"
        print(
            f"{name:<30} | {len(file.read_text().splitlines())} lines | against {law}: m {mean:.3f} c {covariance:.3f} | "
            f"E[r] {graded.reward:.2f} | {updates} updates | {forwards:.0f} forwards a sample | {graded.seconds:.1f} s"
        )


def observations(folder: Path) -> Path:
    """Return the file of the observations, made if it is not there."""
    file = folder / "observations.json"
    if not file.exists():
        simulate_observations(make_pde("Poisson-v0", 32), points=POINTS, noise=NOISE, seed=0)[0].save(file)
    return file


def poisson(folder: Path) -> None:
    """Train over Ray what is not trained yet, and print the rewards of base and tuned model on the same noise."""
    folder.mkdir(parents=True, exist_ok=True)
    file = observations(folder).resolve()
    (folder / "observed.py").write_text(MODULE.format(file=str(file)))
    trivial(ObservationReward(PointObservations.load(file)))
    for method, flags in POISSON.items():
        out = folder / method
        reward = (
            "observed:likelihood" if method == "adjoint-matching" else f"command:{sys.executable} -m envs.observations {file}"
        )
        if not (out / "result.json").exists():
            words = [word for name, value in {**COMMON, **flags}.items() for word in (f"--{name}", value)]
            command = [sys.executable, "-m", "pirf_ray.train", "--method", method, *words, "--reward", reward]
            subprocess.run([*command, "--out", out.name], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        print(measured(out, ObservationReward(PointObservations.load(file))), flush=True)


def measured(out: Path, reward: ObservationReward) -> str:
    """Return two lines about a run: the base model and the tuned model on the same noise, and the seconds of its updates."""
    model = load_model(out).model
    sets = model.sample(range(MEASURED), seed=77, stream="proof", groups=("base", "tuned"))
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    seconds = sum(r["timing/wait"] + r["timing/learn"] + r["timing/sync"] for r in records)
    lines = [line(f"{out.name}, {name}", fields, reward) for name, fields in sets.items()]
    return "\n".join(lines) + f" | {seconds:.0f} s"


def line(name: str, fields: torch.Tensor, reward: ObservationReward) -> str:
    """Return the reward of fields (n, c, h, w), and beside it residual, unrewarded check, wall, amplitude and energy distance."""
    pde = make_pde("Poisson-v0", 32)
    real = pde.solve(0, "proof", range(1024)).float()
    r = reward(fields).reward
    residual, check = (pde.residual(fields.double(), op).mean() for op in (pde.default_operator, pde.unrewarded_operator))
    wall = pde.conditions["wall"](fields.double()).mean()
    amplitude = [round(v, 2) for v in amplitude_ratio(fields, real).tolist()]
    distance = energy_distance_squared_unbiased(fields, real)
    return (
        f"{name:<24} | reward {r.mean():.0f} +- {r.std() / len(r) ** 0.5:.0f} | residual {residual:.2g} unrewarded {check:.2g} "
        f"wall {wall:.2g} | amplitude {amplitude} | squared energy distance {distance:.3f}"
    )


def trivial(reward: ObservationReward) -> None:
    """Print what needs no training: real data, a field of zeros, and search with the base model, by its own evaluations."""
    base = load_model("Poisson-v0").model
    real = base.pde.solve(0, "trivial", range(MEASURED)).float()
    print(line("real data", real, reward))
    print(line("a field of zeros", 0 * real, reward))
    context = SteeringContext(policy=base.policy, reward=reward, normalizer=base.pde.normalizer)
    searches = {
        "best of 8, 96 NFE": (SamplerSettings(num_steps=12, solver="2m"), "best-of-n", BestOfNSettings(candidates=8)),
        "SVDD, 73 NFE": (SamplerSettings(num_steps=10, solver="stochastic"), "svdd", SVDDSettings(proposals=8)),
    }
    for name, (sampler, steerer, own) in searches.items():
        model = replace(base, sampler=sampler, own_sampler=steer(STEERERS.make(steerer, own, context)))
        print(line(name, model.sample(range(64), seed=77, stream="proof")["tuned"], reward), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1:2] == ["gaussian"] and problem():
        gaussian()
    elif sys.argv[1:2] == ["poisson"] and len(sys.argv) == 3:
        sys.path.insert(0, sys.argv[2])
        os.environ |= {"PIRF_RAY_PDES": "observed", "PYTHONPATH": sys.argv[2]}  # nothing is imported that a user does not name
        poisson(Path(sys.argv[2]))
    else:
        sys.exit(__doc__)
