"""vLLM's schedulers, with a place for the canary and with responses that are sent whole.

vLLM admits nothing while as many sequences run as may, whatever is first in the queue. The learner
waits for the canary at every publish, and would wait until some response in flight has ended. So
there is one place that groups and references never take.

vLLM also sends each token by itself from the engine's process to the actor. To pack and unpack
that takes half as long as to sample a token of a small policy, and nobody reads a response before
it ends. So all of its tokens are sent with the last one.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from vllm.config import VllmConfig
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.outputs import LogprobsLists

CANARY_PRIORITY = -2
"""Before everything else in the queue; vLLM serves the lowest first."""
MAX_PARTS = 256
"""The log-probabilities of a part are a view that keeps the arrays of all responses alive."""


def use_own_scheduler(config: VllmConfig) -> None:
    """Let the engine of this configuration run one sequence more if that is a canary, and send
    responses whole."""
    settings = config.scheduler_config
    # A scheduler that a user names himself stays, without both.
    kinds = {AsyncScheduler: AsyncRolloutScheduler, Scheduler: RolloutScheduler}
    if (kind := kinds.get(settings.get_scheduler_cls())) is None:
        return
    # The number that is admitted stays; the model runner gets room for one more.
    settings.max_num_active_seqs = settings.max_num_active_seqs or settings.max_num_seqs
    settings.max_num_seqs += 1
    settings.scheduler_cls = kind


class _ForRollouts:
    """Mixin for a scheduler of vLLM."""

    waiting: Any
    max_num_active_reqs: int

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._num_others = self.max_num_active_reqs
        self._unsent: dict[str, list[EngineCoreOutput]] = {}
        """Of each request that runs the parts of its response, mostly one a step."""

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        # The canary has the lowest number of all, so if one waits it is the first in the queue. Its
        # keys and values need a few blocks, which the next preemption frees at the latest: where
        # the cache is full there is one every few tokens.
        first = self.waiting.peek_request() if self.waiting else None
        is_canary = first is not None and first.priority == CANARY_PRIORITY
        self.max_num_active_reqs = self._num_others + is_canary
        return super().schedule(*args, **kwargs)

    def update_from_output(self, *args: Any, **kwargs: Any) -> dict[int, EngineCoreOutputs]:
        answers = super().update_from_output(*args, **kwargs)
        for answer in answers.values():
            whole = []
            for part in answer.outputs:
                parts = self._unsent.setdefault(part.request_id, [])
                parts.append(part)
                if part.finish_reason is not None:
                    whole.append(join_parts(self._unsent.pop(part.request_id)))
                elif len(parts) == MAX_PARTS:
                    self._unsent[part.request_id] = [join_parts(parts)]
            answer.outputs = whole
        return answers

    def finish_requests(self, *args: Any, **kwargs: Any) -> Any:
        # Requests that end from outside, such as those that nobody waits for any more.
        ended = super().finish_requests(*args, **kwargs)
        for request in ended:
            self._unsent.pop(request.request_id, None)
        return ended


def join_parts(parts: Sequence[EngineCoreOutput]) -> EngineCoreOutput:
    """One output with the tokens of all parts of a response, in their order; changes the last."""
    first, whole = parts[0], parts[-1]
    if first is whole:
        return whole
    whole.new_token_ids = [token for part in parts for token in part.new_token_ids]
    # What concerns the prompt is told once, with the first token.
    whole.prefill_stats = first.prefill_stats
    whole.new_prompt_logprobs_tensors = first.new_prompt_logprobs_tensors
    whole.events = [event for part in parts for event in part.events or ()] or None
    # A part without tokens has none: the one that says that a request failed.
    columns = [part.new_logprobs for part in parts if part.new_logprobs is not None]
    if columns:
        token_ids, logprobs, ranks, _ = zip(*columns, strict=True)
        # A batch has the columns of the sequence in it that asks for most, so their number changes
        # from step to step. The fewest still hold what this one asked for, which come first.
        width = min(array.shape[1] for array in token_ids)
        whole.new_logprobs = LogprobsLists(
            np.concatenate([array[:, :width] for array in token_ids]),
            np.concatenate([array[:, :width] for array in logprobs]),
            np.concatenate(ranks),
        )
    return whole


class RolloutScheduler(_ForRollouts, Scheduler):
    pass


class AsyncRolloutScheduler(_ForRollouts, AsyncScheduler):
    pass
