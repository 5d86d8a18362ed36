"""Property tests draw the same examples every time; HYPOTHESIS_PROFILE=default draws new ones."""

import os

from hypothesis import settings

settings.register_profile("same", derandomize=True, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))
