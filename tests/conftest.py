"""Property tests draw the same examples every time; HYPOTHESIS_PROFILE=default draws new ones.

Tests that send SIGHUP mean what a terminal means by it, also where `nohup` has told all programs to ignore it.
Without a GPU, Triton's kernels run by its interpreter, which has to be said before triton is imported.
DVC starts the commands of stages through the plainest shell, one that stays beside its command, as under cron.
"""

import os
import signal
from pathlib import Path

from hypothesis import settings

settings.register_profile("same", derandomize=True, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))
signal.signal(signal.SIGHUP, signal.SIG_DFL)
os.environ["SHELL"] = "/bin/sh"
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")
