import asyncio
import dataclasses
import math

import numpy as np

from rl.loop.accounting import FinishedPlace
from rl.loop.stages import (
    Choice,
    Claimed,
    Failure,
    Prompt,
    RolloutGroup,
    RolloutRequest,
    Route,
    Score,
    ScoredGroup,
)
from rl.run.finished import FinishedGroups, forget_groups, from_record, to_record
from tests.fakes import trajectory


def request(step=3, place=1, attempt=1):
    prompt = Prompt(f"{step}/{place}/{attempt}", ({"role": "user", "content": "?"},), "12")
    return RolloutRequest(
        f"{step}/{place}/{attempt}", prompt, "long", (0, 1, 2), 2, 16, 1.0, seed=7
    )


def finished(step=3, place=1, versions=(2, 2)):
    sampled = trajectory(versions=versions, text="a \ud800 \u2028", reasoning="r", end_token=9)
    rows = np.array([0.1, -math.pi], np.float32)
    odd = dataclasses.replace(
        sampled,
        token_ids=np.array([5, 2**31 - 1], np.int32),
        loss_mask=np.array([False, True]),
        rollout_logprobs=rows,
        answer=None,
        finish_reason="length",
        choice=Choice(False, 3, is_forced=True),
    )
    scores = (
        Score(
            0.1 + 0.2, {"accuracy": 1 / 3}, Route("number", 2), None, "12", Claimed("1", "box", "")
        ),
        Score(None, failure=Failure("timeout", "slow")),
    )
    group = RolloutGroup(request(step, place), (sampled, odd), engine=1, media_digests=("d",))
    return FinishedPlace(
        step, place, ScoredGroup(group, scores), ("timeout",), (0.25,), {"p": 1 / 3}
    )


def fields(place):
    """All that a place holds, with arrays as lists, which compare as wholes."""

    def listed(value):
        if isinstance(value, np.ndarray):
            return str(value.dtype), value.tolist()
        if dataclasses.is_dataclass(value):
            return {f.name: listed(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return [*map(listed, value)] if isinstance(value, tuple) else value

    return listed(place)


def kept(directory, step, place=(3, 1)):
    store = FinishedGroups(directory, step)
    found = store.take(*place, lambda attempt: request(*place, attempt))
    store.close()
    return found


def test_a_group_comes_back_to_the_last_bit():
    place = finished()
    assert fields(from_record(to_record(place), place.scored.group.request)) == fields(place)


def test_what_finished_after_the_checkpoint_is_there_for_the_next_process(tmp_path):
    store = FinishedGroups(tmp_path, 2)
    asyncio.run(store.add(finished()))
    assert fields(kept(tmp_path, 2)) == fields(finished())


def test_a_torn_line_is_left_out(tmp_path):
    store = FinishedGroups(tmp_path, 2)
    asyncio.run(store.add(finished()))
    store.close()
    path = tmp_path / "step_000002.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    assert kept(tmp_path, 2) is None


def test_what_later_weights_sampled_is_of_no_use_after_a_crash(tmp_path):
    store = FinishedGroups(tmp_path, 2)
    asyncio.run(store.add(finished(versions=(2, 3))))
    assert kept(tmp_path, 2) is None


def test_a_checkpoint_takes_along_what_waits_for_its_update(tmp_path):
    async def main():
        store = FinishedGroups(tmp_path, 2)
        await store.add(finished(3))
        await store.add(finished(4, versions=(2, 3)))
        store.release(3)
        await store.start(4)
        store.prune([4])

    asyncio.run(main())
    assert [path.name for path in tmp_path.iterdir()] == ["step_000004.jsonl"]
    assert kept(tmp_path, 4, (3, 1)) is None
    assert fields(kept(tmp_path, 4, (4, 1))) == fields(finished(4, versions=(2, 3)))


def test_an_answer_to_a_row_that_changed_meanwhile_is_not_used(tmp_path):
    store = FinishedGroups(tmp_path, 2)
    asyncio.run(store.add(finished()))
    other = dataclasses.replace(request(), prompt_token_ids=(0, 1, 5))
    assert FinishedGroups(tmp_path, 2).take(3, 1, lambda attempt: other) is None


def test_responses_that_were_forced_are_none_of_a_group_that_chooses_by_now(tmp_path):
    """Which groups are pairs depends on the number of steps, which may change."""
    store = FinishedGroups(tmp_path, 2)
    asyncio.run(store.add(finished()))
    pair = dataclasses.replace(request(), is_pair=True)
    assert FinishedGroups(tmp_path, 2).take(3, 1, lambda attempt: pair) is None
    assert kept(tmp_path, 2) is not None


def test_groups_of_steps_that_are_made_again_are_forgotten(tmp_path):
    for step in (2, 4):
        FinishedGroups(tmp_path, step).close()
    forget_groups(tmp_path, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["step_000002.jsonl"]
    forget_groups(tmp_path, None)
    assert not [*tmp_path.iterdir()]
