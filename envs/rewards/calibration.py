"""The constants of a reward term, its floor and its reference: measured once on exact data, and kept.

The constants of an operator or a condition of a PDE come from the first of these places:

1. ``constants`` of the PDE class
2. the shipped table ``constants.json``, for the grids of the presets (envs.rewards.constants writes it)
3. the user's cache, ``$PIRF_RAY_CACHE`` or ``~/.cache/pirf_ray``
4. a measurement, which the cache then keeps

A violation of the user's own is measured once per process, not kept on disk. Measurements take a single thread, so that their
bits do not depend on the number of threads. A measurement of more than a few seconds logs a line.
"""

import hashlib
import json
import logging
import math
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import torch

import envs.numerics
import envs.pdes
from envs.common.files import absolute, read_json, write_json
from envs.numerics import seeding
from envs.pdes import PDE

Violation = Callable[[torch.Tensor], torch.Tensor]
"""A function of fields (b, c, h, w) in physical units that returns a violation (b,) >= 0."""
VERSION = 1
"""Version of the measurement. Raise it, and write the shipped table anew, where the constants of a PDE may change."""
SAMPLES = 256
"""Exact samples from which the constants are measured."""
STREAM = "calibration"
CHUNK_VALUES = 256 * 128**2
"""Largest number of grid points, over all samples, at which a violation is computed at once."""
TABLE = Path(__file__).with_name("constants.json")
"""The shipped table."""
CACHE_VARIABLE = "PIRF_RAY_CACHE"
"""Environment variable with the directory of the cache."""
CACHE = "~/.cache/pirf_ray"
PATIENCE = 5.0
"""Seconds after which a measurement logs that it takes long."""
LOGGER = logging.getLogger(__name__)


class Constants(NamedTuple):
    """Constants of a reward term."""

    floor: float
    """Mean violation of exact data."""
    reference: float
    """Mean violation of exact data with white noise, at least the floor."""


@lru_cache(maxsize=16)
def violations(pde: PDE) -> dict[str, Violation]:
    """Return the mean square residual of each operator, and each condition, by name."""
    residuals: dict[str, Violation] = {name: partial(pde.residual, operator=name) for name in pde.operators}
    return residuals | pde.conditions


# --- measuring ---


@lru_cache(maxsize=64)
def measured(pde: PDE, name: str, violation: Violation, noise: float) -> Constants:
    """Return the constants of a violation, measured in float32 like the rewards of samples.

    ``noise`` is the standard deviation of the white noise, model units. The floor of an exact operator is the rounding of
    float32. ValueError if the function ``violation`` returns no violations. NotProvided if the PDE has no solver.
    """
    with _single_thread(), _announced(f"{name} of {table_key(pde)}"):
        fields, floor = _exact_fields(pde), _floor(pde, name, violation)
        white = seeding.normal(0, "calibration noise", range(len(fields)), pde.shape)
        disturbed = pde.normalizer.to_model(fields) + noise * white
        return Constants(floor, max(floor, _mean(violation, pde.normalizer.to_physical(disturbed))))


@lru_cache(maxsize=64)
def _floor(pde: PDE, name: str, violation: Violation) -> float:
    fields = _exact_fields(pde)
    probe = violation(fields[:2])
    if tuple(probe.shape) != (2,) or not torch.isfinite(probe).all() or (probe < 0).any():
        raise ValueError(f"violation {name!r} must return a finite value >= 0 per sample, shape (2,), got {probe.tolist()}")
    return _mean(violation, fields)


def _mean(violation: Violation, fields: torch.Tensor) -> float:
    size = max(1, CHUNK_VALUES // (fields.shape[-2] * fields.shape[-1]))
    return float(torch.cat([violation(chunk.float()) for chunk in torch.split(fields, size)]).mean())


@lru_cache(maxsize=1)
def _exact_fields(pde: PDE) -> torch.Tensor:
    available = pde.available(STREAM)
    count = SAMPLES if available is None else min(SAMPLES, available)
    if count < 2:
        raise ValueError(f"{pde.env_id} has {count} samples of the stream {STREAM!r}, and its rewards need 2")
    return pde.solve(0, STREAM, range(count))


@contextmanager
def _announced(what: str) -> Iterator[None]:
    """Log a line if the block takes longer than PATIENCE."""
    line = "measuring floor and reference of %s on solved fields, once; this may take minutes"
    timer = threading.Timer(PATIENCE, LOGGER.warning, (line, what))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def _single_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


# --- keeping ---


def constants_of(pde: PDE, name: str, noise: float, violation: Violation | None = None) -> Constants:
    """Return the constants of a term of the PDE, for noise in model units.

    ``name`` is an operator or a condition of the PDE, or the name of the user's own ``violation``. Without exact data the floor
    is 0 and the reference is 0, which only the plain form of a reward can use.
    """
    if name in pde.constants:
        return Constants(*pde.constants[name])
    if not pde.provides("solve"):
        return Constants(0.0, 0.0)
    if violation is not None:
        return measured(pde, name, violation, noise)
    return shipped(pde, name, noise) or _cached(pde, name, noise)


def table_key(pde: PDE) -> str:
    """Return the key of a PDE in the shipped table, such as ``Kolmogorov-v0 32 reynolds=40.0``."""
    return " ".join([pde.env_id, str(pde.resolution), *(f"{name}={value!r}" for name, value in sorted(pde.parameters.items()))])


def shipped(pde: PDE, name: str, noise: float) -> Constants | None:
    """Return the constants in the shipped table, or None. Classes from outside this package have none."""
    if not type(pde).__module__.startswith("envs.pdes."):
        return None
    term = _table().get(table_key(pde), {}).get(name, {})
    reference = term.get("references", {}).get(repr(float(noise)))
    return None if reference is None else Constants(term["floor"], reference)


def read_table() -> dict[str, Any]:
    """Return the shipped entries by grid: empty if there is no table of this version and number of samples."""
    table = read_json(TABLE) if TABLE.exists() else {}
    found: dict[str, Any] = table["constants"] if (table.get("version"), table.get("samples")) == (VERSION, SAMPLES) else {}
    return found


_table = lru_cache(maxsize=1)(read_table)


def cache_directory() -> Path:
    """Return the directory of this user's cache."""
    return absolute(Path(os.environ.get(CACHE_VARIABLE) or CACHE)) / "constants"


@lru_cache(maxsize=64)
def _cached(pde: PDE, name: str, noise: float) -> Constants:
    """Return the constants in the cache, else measure them and write them there."""
    violation = violations(pde)[name]
    key = _key(pde, name, violation, noise)
    if key is None:
        return measured(pde, name, violation, noise)
    found = _read(pde, key)
    if found is None:
        found = measured(pde, name, violation, noise)
        _write(pde, key, found)
    return found


def _entry(pde: PDE, key: dict[str, Any]) -> Path:
    digest = hashlib.blake2b(json.dumps(key, sort_keys=True).encode(), digest_size=12).hexdigest()
    return cache_directory() / f"{pde.env_id}-{digest}.json"


def _read(pde: PDE, key: dict[str, Any]) -> Constants | None:
    """Return the constants of an entry, or None if there is no entry. A damaged entry is a warning."""
    try:
        path = _entry(pde, key)
        if not path.is_file():
            return None
        data = read_json(path)
        found = Constants(float(data["floor"]), float(data["reference"]))
        if data["key"] == key and 0 <= found.floor <= found.reference < math.inf:
            return found
        problem = f"{path}: damaged ({found})"
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:  # RuntimeError: a user without a home directory
        problem = str(error)
    warnings.warn(f"the constants of {pde.env_id} are measured anew, not read from the cache: {problem}", stacklevel=2)
    return None


def _write(pde: PDE, key: dict[str, Any], found: Constants) -> None:
    """Write an entry, whole or not at all. Several processes may write one entry, so each has a temporary name of its own."""
    try:
        path = _entry(pde, key)
        own = path.with_name(f"{path.name}.{uuid4().hex}")
        write_json(own, {"key": key, **found._asdict()})
        os.replace(own, path)
    except (OSError, RuntimeError) as error:
        warnings.warn(f"the constants of {pde.env_id} are not kept in the cache: {error}", stacklevel=2)


def _key(pde: PDE, name: str, violation: Violation, noise: float) -> dict[str, Any] | None:
    """Return everything that decides the constants, or None if the source of the PDE's class cannot be read."""
    sources = _sources(type(pde))
    if sources is None:
        return None
    operator = pde.operators.get(name, violation)
    return {
        "version": VERSION,
        "samples": SAMPLES,
        "env_id": pde.env_id,
        "identity": [str(part) for part in pde.identity],
        "term": name,
        "violation": _qualified_name(operator),
        "noise": noise,
        "sources": sources,
    }


def _qualified_name(violation: Violation) -> str:
    function: Any = violation
    while isinstance(function, partial):
        function = function.func
    owner = function if hasattr(function, "__qualname__") else type(function)
    return f"{owner.__module__}.{owner.__qualname__}"


@lru_cache(maxsize=64)
def _sources(cls: type[PDE]) -> str | None:
    """Return a hash of the modules that define the class, and of this package's PDEs and numerics. None if one has no file.

    A changed solver or operator thus has other constants. Changes in other modules of a user's are not seen.
    """
    names = sorted({base.__module__ for base in cls.__mro__ if base.__module__.partition(".")[0] not in sys.stdlib_module_names})
    files = [getattr(sys.modules.get(name), "__file__", None) for name in names]
    own = [path for package in (envs.pdes, envs.numerics) for path in sorted(Path(package.__path__[0]).glob("*.py"))]
    digest = hashlib.blake2b(digest_size=12)
    try:
        for path in (*files, *own):
            if path is None:
                return None
            digest.update(Path(path).read_bytes())
    except OSError:
        return None
    return digest.hexdigest()
