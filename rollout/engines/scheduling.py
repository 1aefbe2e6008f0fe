"""vLLM's schedulers with one place that groups and references never take: the canary's.

vLLM admits nothing while as many sequences run as may, whatever is first in the queue. The learner
waits for the canary at every publish, and would wait until some response in flight has ended.
"""

from typing import Any

from vllm.config import VllmConfig
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler

CANARY_PRIORITY = -2
"""Before everything else in the queue; vLLM serves the lowest first."""


def reserve_canary_place(config: VllmConfig) -> None:
    """Let the engine of this configuration run one sequence more, if that is a canary."""
    settings = config.scheduler_config
    # A scheduler that a user names himself stays; its canaries wait as everything does.
    kinds = {AsyncScheduler: AsyncCanaryScheduler, Scheduler: CanaryScheduler}
    if (kind := kinds.get(settings.get_scheduler_cls())) is None:
        return
    # The number that is admitted stays; the model runner gets room for one more.
    settings.max_num_active_seqs = settings.max_num_active_seqs or settings.max_num_seqs
    settings.max_num_seqs += 1
    settings.scheduler_cls = kind


class _CanaryPlace:
    """Mixin for a scheduler of vLLM."""

    waiting: Any
    max_num_active_reqs: int

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._num_others = self.max_num_active_reqs

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        # The canary has the lowest number of all, so if one waits it is the first in the queue. Its
        # keys and values need a few blocks, which the next preemption frees at the latest: where
        # the cache is full there is one every few tokens.
        first = self.waiting.peek_request() if self.waiting else None
        is_canary = first is not None and first.priority == CANARY_PRIORITY
        self.max_num_active_reqs = self._num_others + is_canary
        return super().schedule(*args, **kwargs)


class CanaryScheduler(_CanaryPlace, Scheduler):
    pass


class AsyncCanaryScheduler(_CanaryPlace, AsyncScheduler):
    pass
