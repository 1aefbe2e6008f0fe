"""The stages of a pass that ask models, with models that only count what they are asked."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rl.align.claims import rules
from rl.align.claims.label_cache import LabelCache
from rl.align.claims.types import DividedResponse, Label, Response
from rl.align.judging import LEAST_MASS, divide, judge, refuse_unfit_labeller
from rl.align.pairing import refuse_no_pairs
from rl.align.sampling import sample
from rl.config.data import SourceConfig
from rl.data.media.names import MediaFile, Medium
from rl.data.media.store import MediaStore
from rl.loop.interfaces import GenerationFailed
from rl.loop.stages import Prompt, RolloutGroup, RolloutRequest, Trajectory
from rl.run.jsonl import Journal
from tests.fakes import config
from tests.minicpmv_tiny import noise_image

SLOTS = config(rollout__prompts_per_step=1, rollout__group_size=2)
ONE_SLOT = SLOTS.model_copy(update={"rollout": SLOTS.rollout.model_copy(update={"group_size": 1})})


class Stopped(Exception):
    """Stands for a killed process."""


class Engine:
    """Answers each prompt with its number and the response's; stops after `stop` groups."""

    def __init__(self, stop: int | None = None, fails: Sequence[str] = ()) -> None:
        self.asked: list[str] = []
        self._stop = stop
        self._fails = fails

    async def generate(self, request: RolloutRequest) -> RolloutGroup:
        if self._stop is not None and len(self.asked) >= self._stop:
            raise Stopped
        self.asked.append(request.prompt.id)
        # Later prompts are answered first.
        await asyncio.sleep(0.02 / (1 + int(request.prompt.id)))
        if request.prompt.id in self._fails:
            raise GenerationFailed("timeout", "too slow")
        texts = [f"{request.prompt.id}{place}" for place in range(request.n)]
        return RolloutGroup(request, tuple(trajectory(text) for text in texts))


def trajectory(text: str) -> Trajectory:
    ids = np.array([7, *map(ord, text)], np.int32)
    mask = np.arange(len(ids)) > 0
    zeros = np.zeros(len(ids), np.float32)
    return Trajectory(ids, mask, zeros, (0, 0), "stop", text, None, f" {text}\n")


def prompt(number: int) -> Prompt:
    return Prompt(str(number), ({"role": "user", "content": f"a{number}b1?"},), "0")


def request(number: int, n: int = 2) -> RolloutRequest:
    return RolloutRequest(f"align/1/{number}", prompt(number), "short", (1,), n, 8, 1.0, number)


def sampled(engine: Engine, path: Path, count: int = 6) -> tuple[list[Response], Counter[str], int]:
    moves: list[None] = []
    with Journal(path) as journal:
        requests = [request(number) for number in range(count)]
        responses, failures = asyncio.run(
            sample(SLOTS, requests, engine, journal, lambda: moves.append(None))
        )
    return responses, failures, len(moves)


def test_responses_come_in_the_order_asked_with_tokens_and_answers(tmp_path: Path) -> None:
    responses, failures, moves = sampled(Engine(), tmp_path / "journal")
    keys = [(str(number), "short", place) for number in range(6) for place in range(2)]
    assert [one.key for one in responses] == keys
    assert responses[3].answer == "11"
    assert responses[3].token_ids == (ord("1"), ord("1"))
    assert (failures, moves) == (Counter(), 6)


def test_sampling_goes_on_where_it_was_cut_short(tmp_path: Path) -> None:
    whole, _, _ = sampled(Engine(), tmp_path / "whole")
    first = Engine(stop=3)
    with pytest.raises(Stopped):
        sampled(first, tmp_path / "journal")
    with Journal(tmp_path / "journal") as journal:
        finished = {record["group_id"].rpartition("/")[2] for record in journal.records}
    assert 1 <= len(finished) <= 3
    second = Engine()
    responses, _, moves = sampled(second, tmp_path / "journal")
    assert sorted(second.asked) == sorted(set("012345") - finished)
    assert responses == whole
    assert moves == 6


def test_a_group_that_fails_is_counted_and_the_others_stay(tmp_path: Path) -> None:
    responses, failures, moves = sampled(Engine(fails=["2"]), tmp_path / "journal")
    assert failures == {"timeout": 1}
    assert {one.prompt.id for one in responses} == set("01345")
    assert moves == 6


def response(number: int, place: int, answer: str | None) -> Response:
    return Response(prompt(number), "short", place, (1, 2), answer or "", answer)


class Divider:
    """States one claim of each answer; stops at the `stop`th answer."""

    name = "divider"

    def __init__(self, stop: int | None = None) -> None:
        self.asked: list[str] = []
        self._stop = stop

    async def reply(self, messages: Sequence[Mapping[str, Any]], max_tokens: int) -> str:
        shown = messages[-1]["content"]
        if shown.startswith("Statements:"):
            return "1. Is it so?"
        if len(self.asked) == self._stop:
            raise Stopped
        self.asked.append(shown)
        return f"1. It is {len(self.asked)}."


def test_equal_answers_are_divided_once_and_never_after_a_restart(tmp_path: Path) -> None:
    responses = [response(0, 0, "11"), response(0, 1, "11"), response(0, 2, "12")]
    responses += [response(1, 0, "11"), response(1, 1, None)]

    def divided(divider: Any) -> list[DividedResponse]:
        with Journal(tmp_path / "journal") as journal:
            return asyncio.run(divide(ONE_SLOT, responses, divider, journal, lambda: None))

    first, second = Divider(stop=2), Divider()
    with pytest.raises(Stopped):
        divided(first)
    found = divided(second)
    assert [one.response for one in found] == responses
    assert [len(one.claims) for one in found] == [1, 1, 1, 1, 0]
    assert found[0].claims == found[1].claims != found[2].claims
    # Only the answer at which it stopped: one response has no answer to be divided.
    assert (len(first.asked), len(second.asked)) == (2, 1)


def test_rules_divide_without_a_divider_and_where_it_fails(tmp_path: Path) -> None:
    class Failing(Divider):
        async def reply(self, messages: Sequence[Mapping[str, Any]], max_tokens: int) -> str:
            raise GenerationFailed("timeout", "too slow")

    def divided(divider: Any) -> DividedResponse:
        with Journal(tmp_path / str(divider)) as journal:
            answers = [response(0, 0, "11")]
            (only,) = asyncio.run(divide(SLOTS, answers, divider, journal, lambda: None))
        return only

    by_rules = rules.divide(response(0, 0, "11"))
    assert divided(None) == by_rules
    assert divided(Failing()) == replace(by_rules, fallback="claims/timeout")


class Labeller:
    def __init__(self, stop: int | None = None, name: str = "labeller") -> None:
        self.name = name
        self.asked: list[str] = []
        self._stop = stop

    async def label(self, question: str, media: Sequence[Medium]) -> Label:
        if self._stop == len(self.asked):
            raise Stopped
        self.asked.append(question)
        if " is 13?" in question:
            return Label(0.01, 0.02)
        if " is 14?" in question:
            raise GenerationFailed("request_refused", "too long")
        return Label(0.9, 0.1) if " is 11?" in question else Label(0.3, 0.6)


def judged(labeller: Labeller, path: Path, answers: Sequence[str]) -> tuple[list, Counter[str]]:
    divided = [rules.divide(response(0, place, answer)) for place, answer in enumerate(answers)]
    return asyncio.run(
        judge(
            SLOTS,
            divided,
            labeller,
            MediaStore(SourceConfig()),
            LabelCache(path),
            lambda: None,
        )
    )


def test_each_question_is_asked_once_and_a_rerun_asks_nothing(tmp_path: Path) -> None:
    first = Labeller()
    found, reasons = judged(first, tmp_path / "labels", ["11", "12", "11"])
    assert len(first.asked) == 2
    assert [one.labels for one in found] == [
        (Label(0.9, 0.1),),
        (Label(0.3, 0.6),),
        (Label(0.9, 0.1),),
    ]
    assert [one.score for one in found] == [0.0, -1.0, 0.0]
    assert not reasons
    second = Labeller()
    assert judged(second, tmp_path / "labels", ["11", "12", "11"])[0] == found
    assert second.asked == []


def test_a_label_is_kept_under_all_that_decides_it(tmp_path: Path) -> None:
    for number in (0, 1):
        noise_image(20, 20, number).save(tmp_path / f"{number}.png")
    first, second = (MediaFile("image", str(tmp_path / f"{number}.png")) for number in (0, 1))
    cache, store = LabelCache(tmp_path / "labels"), MediaStore(SourceConfig())

    def num_asked(media: Sequence[Medium], answer: str, name: str = "labeller") -> int:
        labeller, bare = Labeller(name=name), response(0, 0, answer)
        shown = replace(bare, prompt=replace(bare.prompt, media=tuple(media)))
        divided = [rules.divide(shown)]
        asyncio.run(judge(SLOTS, divided, labeller, store, cache, lambda: None))
        return len(labeller.asked)

    assert num_asked([first, second], "11") == 1
    assert num_asked([first, second], "11") == 0
    assert num_asked([second, first], "11") == 1
    assert num_asked([first], "11") == 1
    assert num_asked([first, second], "12") == 1
    assert num_asked([first, second], "11", "another") == 1


def test_labels_given_before_a_stop_are_not_asked_for_again(tmp_path: Path) -> None:
    first = Labeller(stop=1)
    with pytest.raises(Stopped):
        judged(first, tmp_path / "labels", ["11", "12"])
    second = Labeller()
    judged(second, tmp_path / "labels", ["11", "12"])
    assert len(second.asked) == 1
    assert not set(first.asked) & set(second.asked)


def test_neither_yes_nor_no_and_refused_questions_have_no_label(tmp_path: Path) -> None:
    found, reasons = judged(Labeller(), tmp_path / "labels", ["13", "14", "13", "11"])
    assert [one.labels for one in found] == [(None,), (None,), (None,), (Label(0.9, 0.1),)]
    assert reasons == {"neither yes nor no": 2, "request_refused": 1}
    # What was answered is kept, so that it is not asked again either.
    again = Labeller()
    judged(again, tmp_path / "labels", ["13", "14", "13", "11"])
    assert len(again.asked) == 1
    assert LEAST_MASS > 0.03


def test_a_labeller_that_answers_neither_ends_the_pass_by_name(tmp_path: Path) -> None:
    found, reasons = judged(Labeller(), tmp_path / "labels", ["13", "13", "11", "13"])
    with pytest.raises(ValueError) as error:
        refuse_unfit_labeller("lab@1", found, reasons)
    assert str(error.value).startswith(
        "the labeller lab@1 gives 3 of 4 claims no label (3 neither yes nor no), such as "
        "'Is it correct that the answer to \"a0b1?\" is 13? Please answer yes or no.'"
    )
    half, reasons = judged(Labeller(), tmp_path / "labels", ["13", "11"])
    refuse_unfit_labeller("lab@1", half, reasons)
    refuse_unfit_labeller("lab@1", *judged(Labeller(), tmp_path / "labels", []))


def test_no_pairs_left_says_what_became_of_them() -> None:
    with pytest.raises(ValueError, match=r"no preference pair is left: 4 pairs/identical_text, 9"):
        refuse_no_pairs({"pairs/identical_text": 4, "responses/used": 9})
    refuse_no_pairs({"pairs/kept": 1})
