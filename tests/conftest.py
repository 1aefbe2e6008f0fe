"""Checks the tensor shapes that annotations state, in tests only: production pays nothing."""

from jaxtyping import install_import_hook

install_import_hook(["rl.losses", "rl.batching", "policy.logprobs"], "beartype.beartype")
