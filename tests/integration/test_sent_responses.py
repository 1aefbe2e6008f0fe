"""Responses leave vLLM's engine whole: outputs of its scheduler, made by hand, joined by ours."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason
from vllm.v1.outputs import LogprobsLists

from rollout.engines import scheduling


class Steps:
    """In the place of vLLM's scheduler: tells of one step after the other."""

    max_num_active_reqs = 4

    def __init__(self, steps: list[list[EngineCoreOutput]]) -> None:
        self._steps = iter(steps)

    def update_from_output(self) -> dict[int, EngineCoreOutputs]:
        return {0: EngineCoreOutputs(outputs=next(self._steps))}

    def finish_requests(self, names: list[str]) -> list[Any]:
        return [SimpleNamespace(request_id=name) for name in names]


class Scheduler(scheduling._ForRollouts, Steps):
    pass


def part(name: str, *tokens: int, **more: Any) -> EngineCoreOutput:
    rows = np.array(tokens, np.int32)[:, None]
    columns = LogprobsLists(rows, -rows / 10, rows[:, 0] * 2) if tokens else None
    return EngineCoreOutput(name, list(tokens), columns, **more)


@pytest.mark.parametrize("max_parts", [2, 256])
def test_a_response_is_sent_once_with_all_its_tokens_in_order(
    monkeypatch: pytest.MonkeyPatch, max_parts: int
) -> None:
    monkeypatch.setattr(scheduling, "MAX_PARTS", max_parts)
    stop: Any = {"finish_reason": FinishReason.STOP, "stop_reason": 9}
    scheduler = Scheduler(
        [
            [part("a", 1, prefill_stats="of the prompt"), part("b", 5, **stop)],
            [part("a", 2, 3)],
            [part("a", 4)],
            [part("a", 9, **stop), part("c", 7)],
        ]
    )
    sent = [scheduler.update_from_output()[0].outputs for _ in range(4)]
    assert [[whole.request_id for whole in step] for step in sent] == [["b"], [], [], ["a"]]
    (whole,) = sent[3]
    assert whole.new_token_ids == [1, 2, 3, 4, 9]
    assert (whole.finish_reason, whole.stop_reason) == (FinishReason.STOP, 9)
    assert whole.prefill_stats == "of the prompt"
    assert whole.new_logprobs is not None
    assert whole.new_logprobs.logprob_token_ids.tolist() == [[1], [2], [3], [4], [9]]
    assert whole.new_logprobs.logprobs == pytest.approx(-whole.new_logprobs.logprob_token_ids / 10)
    assert whole.new_logprobs.sampled_token_ranks.tolist() == [2, 4, 6, 8, 18]


def test_a_request_that_fails_keeps_what_it_had() -> None:
    failed = part("a", finish_reason=FinishReason.ERROR)
    scheduler = Scheduler([[part("a", 1)], [failed]])
    scheduler.update_from_output()
    (whole,) = scheduler.update_from_output()[0].outputs
    assert whole.new_token_ids == [1]
    assert whole.new_logprobs is not None
    assert whole.new_logprobs.logprob_token_ids.tolist() == [[1]]


def test_what_an_aborted_request_had_is_forgotten() -> None:
    scheduler = Scheduler([[part("a", 1)], [part("a", 8, finish_reason=FinishReason.LENGTH)]])
    scheduler.update_from_output()
    scheduler.finish_requests(["a", "unknown"])
    assert scheduler.update_from_output()[0].outputs[0].new_token_ids == [8]


def test_a_response_keeps_the_columns_of_its_own_beside_one_that_asks_for_more() -> None:
    """vLLM gives a whole batch the columns of the sequence that asks for most."""
    wide = part("a", 2)
    wide.new_logprobs = LogprobsLists(
        np.array([[2, 5, 6]], np.int32), np.array([[-0.2, -0.5, -0.6]]), np.array([4])
    )
    scheduler = Scheduler([[part("a", 1)], [wide], [part("a", 3, finish_reason=FinishReason.STOP)]])
    (whole,) = [scheduler.update_from_output()[0].outputs for _ in range(3)][-1]
    assert whole.new_token_ids == [1, 2, 3]
    assert whole.new_logprobs is not None
    assert whole.new_logprobs.logprob_token_ids.tolist() == [[1], [2], [3]]
    assert whole.new_logprobs.logprobs == pytest.approx(np.array([[-0.1], [-0.2], [-0.3]]))
    assert whole.new_logprobs.sampled_token_ranks.tolist() == [2, 4, 6]
