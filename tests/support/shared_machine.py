"""``python tests/support/shared_machine.py``: seconds per update of the main job, alone and beside one busy process."""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

START_UP = 2
"""Updates that are not counted: the first ones fill caches."""
LITTLE_ELSE = ("--guard", "off", "--samples", "2", "--real", "8", "--num-steps", "20")


@contextlib.contextmanager
def busy_process() -> Iterator[None]:
    """A process that computes without a pause."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def seconds_per_update(updates: int, out: Path) -> list[float]:
    """Fine-tune the shipped Burgers model with the main job's settings."""
    command = [sys.executable, "-m", "pirf_ray.train", "--env", "Burgers-v0", "--updates", str(updates), "--out", str(out)]
    subprocess.run([*command, *LITTLE_ELSE], check=True, stdout=subprocess.DEVNULL)
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [sum(r[f"timing/{part}"] for part in ("wait", "learn", "sync")) for r in records[START_UP:]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--updates", type=int, default=14)
    updates = parser.parse_args().updates
    medians = []
    for name, beside in (("alone", contextlib.nullcontext()), ("beside a busy process", busy_process())):
        with tempfile.TemporaryDirectory() as home, beside:
            seconds = seconds_per_update(updates, Path(home) / "run")
        medians.append(statistics.median(seconds))
        print(f"{name}: median {medians[-1]:.2f} s, mean {statistics.fmean(seconds):.2f} s, {len(seconds)} updates", flush=True)
    print(f"ratio of the medians: {medians[1] / medians[0]:.2f}, {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
