"""Checks the tensor shapes that annotations state, in tests only: production pays nothing."""

import gc

from hypothesis import settings
from jaxtyping import install_import_hook

# Libraries make a million objects as they load, which stay: to look through them takes time.
gc.set_threshold(50_000, 10, 10)

ANNOTATED = ["rl.loop.losses", "rl.loop.batching", "policy.learner.logprobs"]
install_import_hook(ANNOTATED, "beartype.beartype")

# A property holds however busy the machine is; what hangs ends with the test's own timeout. The
# examples are the same in every run, so that a change that passes here passes everywhere.
settings.register_profile("unhurried", deadline=None, derandomize=True)
settings.load_profile("unhurried")
