"""The package as a whole: what importing it loads."""

import subprocess
import sys

from places import ROOT


def test_importing_envs_loads_neither_ray_nor_matplotlib():
    code = "import sys, envs, envs.pdes; print(sorted({'ray', 'matplotlib', 'pirf_ray', 'tune'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"
