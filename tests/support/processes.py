"""Waiting for processes, and finding Ray's."""

import subprocess
import time
from collections.abc import Callable


def wait_for(condition: Callable[[], object], timeout: float = 300) -> None:
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.2)


def ray_processes(parent: int, name: str) -> list[int]:
    """Descendants of ``parent`` whose command line holds ``name``."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    rows = [(int(pid), int(ppid), args) for pid, ppid, args in (line.split(None, 2) for line in listed.splitlines())]
    family = {parent}
    while grown := {pid for pid, ppid, _ in rows if ppid in family} - family:
        family |= grown
    return [pid for pid, _, args in rows if pid in family and name in args]
