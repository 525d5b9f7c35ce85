"""How commands end: one line for a user's mistake, an exit code for everything."""

import errno
import signal
import sys
from collections.abc import Callable

from envs.rewards import RewardError
from pirf_ray.training.outcome import LearnerFailed

USAGE_ERROR = 2
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)
INTERRUPTED = 128 + signal.SIGINT


def run_command(main: Callable[[], None]) -> None:
    """Run a command: bad input is one line on stderr and exit code 2, Ctrl-C is exit code 130.

    Bad input is ValueError (settings, checkpoints, data files), FileExistsError and FileNotFoundError. A run that failed
    for good and a reward that failed are one line and exit code 1. So is a disk that is full or closed. Any other error is a bug
    and keeps its traceback.
    """
    try:
        main()
    except (ValueError, FileExistsError, FileNotFoundError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(USAGE_ERROR)
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        print(f"error: {error}; what was written before is kept", file=sys.stderr)
        sys.exit(1)
    except (LearnerFailed, RewardError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt as interrupt:
        print(str(interrupt) or "interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
