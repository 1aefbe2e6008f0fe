"""Kernels that a policy may be trained with in place of PyTorch's own: attention, fused layers.

Those of other packages are optional: what is missing is refused by name, with what to install.
"""

import importlib
import inspect
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel
from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available

from rl.config.policy import Attention

FLASH_PACKAGES: Mapping[str, Any] = {
    "flash_attention_2": ("flash-attn", is_flash_attn_2_available),
    "flash_attention_3": ("flash-attn-3", is_flash_attn_3_available),
}
"""The package that each of them comes from, and what tells whether it can run here."""
PREFERRED: Mapping[str, list[SDPBackend]] = {
    "flash": [
        SDPBackend.FLASH_ATTENTION,
        SDPBackend.EFFICIENT_ATTENTION,
        SDPBackend.MATH,
    ],
    "cudnn": [
        SDPBackend.CUDNN_ATTENTION,
        SDPBackend.FLASH_ATTENTION,
        SDPBackend.EFFICIENT_ATTENTION,
        SDPBackend.MATH,
    ],
}
"""PyTorch's kernels in the order in which they are tried: a vision tower's attention has a mask,
which some of them cannot take."""
LIGER_PREFIX = "apply_liger_kernel_to_"


def attention_implementation(attention: Attention) -> str:
    """transformers' name for it; raises ValueError if its package is not installed."""
    if attention not in FLASH_PACKAGES:
        return "sdpa"
    package, is_available = FLASH_PACKAGES[attention]
    if not is_available():
        raise ValueError(
            f"policy.attention={attention} needs the package {package} and a GPU that it runs on, "
            "which are not here; install it on every node, or take policy.attention=sdpa"
        )
    return attention


def preferred_attention(attention: Attention) -> AbstractContextManager[Any]:
    """Within the block PyTorch tries its kernels in the preferred order.

    The block must hold every backward pass too, which recomputes what was not kept.
    """
    if attention not in PREFERRED:
        return nullcontext()
    return sdpa_kernel(PREFERRED[attention], set_priority=True)


def fuse_layers(model: PreTrainedModel) -> None:
    """Have liger-kernel compute the model's norms, rotary embeddings and SwiGLU.

    Raises ValueError if it is not installed, or does not know the model's family.
    """
    try:
        liger = importlib.import_module("liger_kernel.transformers")
    except ImportError as error:
        raise ValueError(
            "policy.fused_layers=true needs liger-kernel, which is not installed here "
            f"({error}); pip install 'hybrid-rl[fused]' on every node, or leave it out"
        ) from error
    model_type = model.config.model_type
    patch = getattr(liger, LIGER_PREFIX + model_type, None)
    if patch is None:
        known = (name for name in getattr(liger, "__all__", ()) if name.startswith(LIGER_PREFIX))
        families = ", ".join(sorted(name.removeprefix(LIGER_PREFIX) for name in known))
        raise ValueError(
            f"policy.fused_layers=true: liger-kernel has no layers for {model_type}, only for "
            f"{families}; leave it out"
        )
    # The output layer stays as it is: the learner takes log-probabilities from it by itself, and
    # never calls the forward that liger-kernel would put in place of the model's.
    settings = dict.fromkeys(("cross_entropy", "fused_linear_cross_entropy"), False)
    taken = inspect.signature(patch).parameters
    patch(**{name: value for name, value in settings.items() if name in taken}, model=model)
