"""An optimizer step of DeepSpeed that can be refused once the norm of its gradient is known.

DeepSpeed itself leaves out a step whose gradient has no finite norm, on all ranks, and clears its
buffers, which differ by ZeRO stage. So a step that must not be taken for another reason is shown to
it as one of infinite norm, and goes the same way.
"""

from collections.abc import Callable
from typing import Any

import torch
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.utils import combine_grad_norm_groups, get_global_norm_of_tensors


class StepGate:
    def __init__(self, optimizer: Any) -> None:
        """optimizer: that of a DeepSpeed engine of ZeRO stage 1, 2 or 3."""
        self._judge: Callable[[float], bool] = lambda norm: True
        self._norm = float("inf")
        # One method in each of DeepSpeed's three optimizers, from which its step takes the norm.
        if isinstance(optimizer, BF16_Optimizer):
            gradients = optimizer.get_grads_for_norm

            def shown_gradients(for_clipping: bool = False) -> Any:
                own = gradients(for_clipping)
                if for_clipping:
                    return own
                norm = get_global_norm_of_tensors(own[0], mpu=optimizer.mpu)
                return own if self._passes(norm) else ([torch.full_like(norm, torch.inf)], own[1])

            optimizer.get_grads_for_norm = shown_gradients
        elif hasattr(optimizer, "scaled_global_norm"):
            norm_of_all = optimizer.scaled_global_norm

            def shown_norm(norm_type: int = 2) -> torch.Tensor:
                norm = norm_of_all(norm_type)
                return norm if self._passes(norm) else torch.full_like(norm, torch.inf)

            optimizer.scaled_global_norm = shown_norm
        else:
            norms_of_groups = optimizer._get_norm_groups

            def shown_norms() -> list[torch.Tensor]:
                norms = norms_of_groups()
                whole = combine_grad_norm_groups(norms)
                return norms if self._passes(whole) else [torch.full_like(whole, torch.inf)]

            optimizer._get_norm_groups = shown_norms

    def step(self, engine: Any, judge: Callable[[float], bool]) -> float:
        """Take the engine's step if `judge` lets its norm pass; returns the norm.

        The norm is equal on all ranks, so they decide alike. It is infinite where the gradient is
        not finite, and then the step is not taken whatever `judge` says.
        """
        self._judge, self._norm = judge, float("inf")
        engine.step()
        return self._norm

    def _passes(self, norm: torch.Tensor) -> bool:
        # -1 stands for a norm that is no number.
        if norm < 0 or not torch.isfinite(norm):
            return False
        self._norm = float(norm)
        return self._judge(self._norm)
