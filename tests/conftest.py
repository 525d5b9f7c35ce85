"""One thread for every test: the machine is small, and thread counts change rounding."""

import os
import signal

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

torch.set_num_threads(1)
# A background job of a shell ignores Ctrl-C, and so would every command that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)
