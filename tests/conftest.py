"""Checks the tensor shapes that annotations state, in tests only: production pays nothing."""

from hypothesis import settings
from jaxtyping import install_import_hook

ANNOTATED = ["rl.loop.losses", "rl.loop.batching", "policy.learner.logprobs"]
install_import_hook(ANNOTATED, "beartype.beartype")

# A property holds however busy the machine is; what hangs ends with the test's own timeout.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")
