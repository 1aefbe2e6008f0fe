"""What an RLAIF-V pass is made of: responses, their claims, the labels of those, and pairs.

    Response -> DividedResponse -> JudgedResponse -> PreferencePair

Each type has its Parquet file, written all or nothing, in which every row stands for itself: the
prompt with its media and reference, the texts, the claims with their questions and probabilities
(https://arxiv.org/abs/2405.17220). Loads without torch.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from rl.data.media.names import Medium, from_json, to_json
from rl.evaluate.evaluation import half_width, mean
from rl.loop.stages import Prompt
from rl.run.files import atomic_write
from rl.run.ledger import storable_text


@dataclass(frozen=True)
class Response:
    """One response that the policy sampled."""

    prompt: Prompt
    mode: str
    place: int
    """Its number among the responses to this prompt in this mode, from 0."""
    token_ids: tuple[int, ...]
    """The sampled tokens, the end of sequence among them if it was sampled."""
    text: str
    answer: str | None
    """The final answer, which alone is divided; None where there is none."""

    @property
    def key(self) -> tuple[str, str, int]:
        return self.prompt.id, self.mode, self.place


@dataclass(frozen=True)
class Claim:
    """A statement that can be checked without the rest of the answer.

    Example: Claim("The cup is red.", "Is it correct that the cup is red? Please answer yes or no.")
    """

    text: str
    question: str
    """Asks whether it is so; what the labeller sees beside the media."""


@dataclass(frozen=True)
class DividedResponse:
    response: Response
    claims: tuple[Claim, ...]
    """In the order of the answer; empty where it states no fact."""
    divider: str
    """What divided it, with its version."""
    fallback: str | None = None
    """Why it was not the divider that was asked for; None where it was."""


@dataclass(frozen=True)
class Label:
    """How probable a labeller finds yes and no; raises ValueError for what is no probability."""

    p_yes: float
    p_no: float

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            # Sums over spellings in single precision end a little above 1.
            if not (math.isfinite(value) and 0.0 <= value <= 1.001):
                raise ValueError(f"{name} of a label must be a probability, got {value!r}")

    @property
    def is_accepted(self) -> bool:
        """Whether the claim counts as true; a tie does not."""
        return self.p_yes > self.p_no


class Assistant(Protocol):
    """A language model that is asked one thing at a time: it divides answers, or labels claims."""

    name: str
    """What claims and labels are kept under: the model, with what else changes its answers."""

    async def reply(self, messages: Sequence[Mapping[str, Any]], max_tokens: int) -> str | None:
        """The likeliest reply, without reasoning; None if the token budget cut it off.

        Raises rl.loop.interfaces.GenerationFailed if the request is at fault.
        """
        ...

    async def label(self, question: str, media: Sequence[Medium]) -> Label:
        """How probable yes and no are as the next token, each summed over its spellings.

        Both may be next to nothing, where the model wants to say something else. Raises
        rl.loop.interfaces.GenerationFailed if the request is at fault, ValueError if the model is.
        """
        ...


@dataclass(frozen=True)
class JudgedResponse:
    response: Response
    claims: tuple[Claim, ...]
    labels: tuple[Label | None, ...]
    """Of each claim; None where the labeller gave none."""

    def __post_init__(self) -> None:
        if len(self.claims) != len(self.labels):
            raise ValueError(
                f"response {self.response.key} has {len(self.claims)} claims and "
                f"{len(self.labels)} labels; give each claim a label or None"
            )

    @property
    def is_complete(self) -> bool:
        return None not in self.labels

    @property
    def num_wrong(self) -> int:
        """Claims that were rejected; raises ValueError if some have no label."""
        labels = [label for label in self.labels if label is not None]
        if len(labels) < len(self.labels):
            missing = len(self.labels) - len(labels)
            raise ValueError(
                f"{missing} of {len(self.labels)} claims of response {self.response.key} have no "
                "label; leave such a response out"
            )
        return sum(not label.is_accepted for label in labels)

    @property
    def score(self) -> float:
        """Minus the claims that were rejected."""
        return float(-self.num_wrong)


@dataclass(frozen=True)
class RewardedResponse:
    """A response of an RL run, which has a reward in place of claims."""

    response: Response
    """Its place is that in its group."""
    group_id: str
    score: float
    """What the pair was made by: its reward, or its accuracy."""


@dataclass(frozen=True)
class PreferencePair:
    """Two responses to one prompt in one mode, of which the first is the better one."""

    chosen: JudgedResponse | RewardedResponse
    rejected: JudgedResponse | RewardedResponse

    def __post_init__(self) -> None:
        sides = self.chosen.response, self.rejected.response
        if sides[0].key[:2] != sides[1].key[:2]:
            raise ValueError(
                f"a pair is of one prompt and mode, got {[side.key for side in sides]}"
            )
        if not self.chosen.score > self.rejected.score:
            raise ValueError(
                f"pair {self.id}: the chosen response must have the higher score, got "
                f"{self.chosen.score} and {self.rejected.score}"
            )

    @property
    def prompt(self) -> Prompt:
        return self.chosen.response.prompt

    @property
    def mode(self) -> str:
        return self.chosen.response.mode

    @property
    def id(self) -> str:
        """Unique among the pairs of one file.

        Example: "arithmetic/17/short/0>3"
        """
        name = self.prompt.id
        if isinstance(self.chosen, RewardedResponse):
            name = f"{name}/{self.chosen.group_id}"
        return f"{name}/{self.mode}/{self.chosen.response.place}>{self.rejected.response.place}"


# Rates.


@dataclass(frozen=True)
class HallucinationRate:
    """How often a mode says what is wrong, over responses whose every claim has a label.

    The intervals are over prompts, because responses to one prompt are not independent.
    """

    wrong_claims: float
    """Mean over prompts of the rejected claims per response."""
    wrong_claims_half_width: float
    """Half of its 95 % interval."""
    wrong_responses: float
    """Mean over prompts of the share of responses with any rejected claim."""
    wrong_responses_half_width: float
    claims: float
    """Claims per response, so that a rate that fell by saying less shows."""
    silent: float
    """Share of responses without a single claim; they count as not wrong."""
    count: int
    """Prompts."""
    incomplete: int
    """Responses left out because a claim has no label."""

    def as_metrics(self, mode: str) -> dict[str, float]:
        return {f"eval/{mode}/{name}": float(value) for name, value in vars(self).items()}


def hallucination_rates(judged: Sequence[JudgedResponse]) -> dict[str, HallucinationRate]:
    """The rate of each mode; a mode of which no response is complete has none.

    In the manner of CHAIR (share of responses with an error) and MMHal (errors per response).
    """
    of_mode: defaultdict[str, list[JudgedResponse]] = defaultdict(list)
    for one in judged:
        of_mode[one.response.mode].append(one)
    return {
        mode: _rate(complete, incomplete=len(of_mode[mode]) - len(complete))
        for mode in sorted(of_mode)
        if (complete := [one for one in of_mode[mode] if one.is_complete])
    }


def _rate(judged: Sequence[JudgedResponse], incomplete: int) -> HallucinationRate:
    of_prompt: defaultdict[str, list[JudgedResponse]] = defaultdict(list)
    for one in judged:
        of_prompt[one.response.prompt.id].append(one)

    def means(value: Callable[[JudgedResponse], float]) -> list[float]:
        return [mean([value(one) for one in group]) for group in of_prompt.values()]

    wrong = means(lambda one: one.num_wrong)
    any_wrong = means(lambda one: one.num_wrong > 0)
    return HallucinationRate(
        wrong_claims=mean(wrong),
        wrong_claims_half_width=half_width(wrong),
        wrong_responses=mean(any_wrong),
        wrong_responses_half_width=half_width(any_wrong),
        claims=mean(means(lambda one: len(one.claims))),
        silent=mean(means(lambda one: not one.claims)),
        count=len(of_prompt),
        incomplete=incomplete,
    )


# Files.


def _text(name: str, nullable: bool = False) -> pa.Field:
    return pa.field(name, pa.string(), nullable=nullable)


_PROMPT = (
    _text("prompt_id"),
    _text("messages"),
    _text("media", nullable=True),
    _text("reference"),
    _text("task"),
    _text("pinned_mode", nullable=True),
    _text("mode"),
)
_RESPONSE = (
    pa.field("place", pa.int32(), nullable=False),
    pa.field("token_ids", pa.list_(pa.int32()), nullable=False),
    _text("text"),
    _text("answer", nullable=True),
)
_CLAIM = (_text("text"), _text("question"))
_JUDGED_CLAIM = (*_CLAIM, pa.field("p_yes", pa.float64()), pa.field("p_no", pa.float64()))
_CLAIMS = pa.field("claims", pa.list_(pa.struct(_CLAIM)), nullable=False)
_JUDGED_CLAIMS = pa.field("claims", pa.list_(pa.struct(_JUDGED_CLAIM)), nullable=False)
_SIDE = pa.struct(
    (
        *_RESPONSE,
        pa.field("claims", pa.list_(pa.struct(_JUDGED_CLAIM))),
        _text("group_id", nullable=True),
        pa.field("score", pa.float64(), nullable=False),
    )
)
_RESPONSES = pa.schema((*_PROMPT, *_RESPONSE))
_DIVIDED = pa.schema((*_RESPONSES, _CLAIMS, _text("divider"), _text("fallback", nullable=True)))
_JUDGED = pa.schema((*_RESPONSES, _JUDGED_CLAIMS, pa.field("score", pa.float64())))
_PAIRS = pa.schema(
    (
        _text("id"),
        *_PROMPT,
        pa.field("chosen", _SIDE, nullable=False),
        pa.field("rejected", _SIDE, nullable=False),
    )
)


def write_responses(path: Path, responses: Iterable[Response]) -> None:
    _write(path, _RESPONSES, [response_record(one) for one in responses])


def read_responses(path: Path) -> list[Response]:
    """What `write_responses` wrote; raises ValueError for a file of another form."""
    return [as_response(record) for record in _read(path, _RESPONSES)]


def write_divided(path: Path, divided: Iterable[DividedResponse]) -> None:
    _write(path, _DIVIDED, [divided_record(one) for one in divided])


def read_divided(path: Path) -> list[DividedResponse]:
    """What `write_divided` wrote; raises ValueError for a file of another form."""
    return [as_divided(record) for record in _read(path, _DIVIDED)]


def write_judged(path: Path, judged: Iterable[JudgedResponse]) -> None:
    _write(path, _JUDGED, [_judged_record(one) for one in judged])


def read_judged(path: Path) -> list[JudgedResponse]:
    """What `write_judged` wrote; raises ValueError for a file of another form."""
    return [_judged(as_response(record), record["claims"]) for record in _read(path, _JUDGED)]


def write_pairs(path: Path, pairs: Iterable[PreferencePair]) -> None:
    _write(path, _PAIRS, [_pair_record(pair) for pair in pairs])


def read_pairs(path: Path) -> list[PreferencePair]:
    """What `write_pairs` wrote; raises ValueError for a file of another form."""
    return [
        PreferencePair(_side(record, record["chosen"]), _side(record, record["rejected"]))
        for record in _read(path, _PAIRS)
    ]


def _write(path: Path, schema: pa.Schema, records: Sequence[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as partial:
        pq.write_table(pa.Table.from_pylist(records, schema), partial, compression="zstd")


def _read(path: Path, schema: pa.Schema) -> list[dict[str, Any]]:
    try:
        table = pq.read_table(path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is no Parquet file: {error}") from error
    # A list's inner field is called otherwise in a file that was read back.
    if table.column_names != schema.names:
        raise ValueError(
            f"{path} has the columns {', '.join(table.column_names)} and should have "
            f"{', '.join(schema.names)}; another version wrote it, remove it to have it made again"
        )
    return table.to_pylist()


def response_record(response: Response) -> dict[str, Any]:
    """A row of `write_responses`: plain values, which JSON holds too."""
    return _prompt_record(response.prompt, response.mode) | _answer_record(response)


def divided_record(divided: DividedResponse) -> dict[str, Any]:
    """A row of `write_divided`: plain values, which JSON holds too."""
    return response_record(divided.response) | {
        "claims": [_claim_record(claim) for claim in divided.claims],
        "divider": divided.divider,
        "fallback": divided.fallback,
    }


def _judged_record(judged: JudgedResponse) -> dict[str, Any]:
    return response_record(judged.response) | {
        "claims": _judged_claims(judged),
        "score": judged.score if judged.is_complete else None,
    }


def _pair_record(pair: PreferencePair) -> dict[str, Any]:
    return _prompt_record(pair.prompt, pair.mode) | {
        "id": storable_text(pair.id),
        "chosen": _side_record(pair.chosen),
        "rejected": _side_record(pair.rejected),
    }


def _prompt_record(prompt: Prompt, mode: str) -> dict[str, Any]:
    messages = json.dumps(prompt.messages, default=dict, ensure_ascii=False)
    return {
        "prompt_id": storable_text(prompt.id),
        "messages": storable_text(messages),
        "media": to_json(prompt.media) if prompt.media else None,
        "reference": storable_text(prompt.reference),
        "task": prompt.task,
        "pinned_mode": prompt.mode,
        "mode": mode,
    }


def _answer_record(response: Response) -> dict[str, Any]:
    return {
        "place": response.place,
        "token_ids": list(response.token_ids),
        "text": storable_text(response.text),
        "answer": None if response.answer is None else storable_text(response.answer),
    }


def _claim_record(claim: Claim) -> dict[str, Any]:
    return {"text": storable_text(claim.text), "question": storable_text(claim.question)}


def _judged_claims(judged: JudgedResponse) -> list[dict[str, Any]]:
    return [
        _claim_record(claim) | (vars(label) if label else {"p_yes": None, "p_no": None})
        for claim, label in zip(judged.claims, judged.labels, strict=True)
    ]


def _side_record(side: JudgedResponse | RewardedResponse) -> dict[str, Any]:
    is_judged = isinstance(side, JudgedResponse)
    return _answer_record(side.response) | {
        "claims": _judged_claims(side) if is_judged else None,
        "group_id": None if is_judged else side.group_id,
        "score": side.score,
    }


def _side(pair: Mapping[str, Any], record: Mapping[str, Any]) -> JudgedResponse | RewardedResponse:
    response = as_response({**pair, **record})
    if record["group_id"] is None:
        return _judged(response, record["claims"])
    return RewardedResponse(response, record["group_id"], record["score"])


def as_divided(record: Mapping[str, Any]) -> DividedResponse:
    """What `divided_record` made a record of."""
    claims = tuple(Claim(**claim) for claim in record["claims"])
    return DividedResponse(as_response(record), claims, record["divider"], record["fallback"])


def as_response(record: Mapping[str, Any]) -> Response:
    """What `response_record` made a record of."""
    prompt = Prompt(
        id=record["prompt_id"],
        messages=tuple(json.loads(record["messages"])),
        reference=record["reference"],
        task=record["task"],
        mode=record["pinned_mode"],
        media=from_json(record["media"]) if record["media"] else (),
    )
    return Response(
        prompt=prompt,
        mode=record["mode"],
        place=record["place"],
        token_ids=tuple(record["token_ids"]),
        text=record["text"],
        answer=record["answer"],
    )


def _judged(response: Response, claims: Sequence[Mapping[str, Any]]) -> JudgedResponse:
    return JudgedResponse(
        response,
        tuple(Claim(claim["text"], claim["question"]) for claim in claims),
        tuple(
            None if claim["p_yes"] is None else Label(claim["p_yes"], claim["p_no"])
            for claim in claims
        ),
    )
