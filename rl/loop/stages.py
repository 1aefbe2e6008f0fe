"""The types that flow through a run, one per stage.

    Prompt -> RolloutRequest -> RolloutGroup -> ScoredGroup -> TrainSample -> TrainBatch

Each stage wraps the one before it; no field is ever filled in later. Arrays are numpy so that this
module loads without torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rl.config.policy import THINK_TAGS, ThinkTags
from rl.config.rollout import Thinking
from rl.data.media.names import Medium

FinishReason = Literal["stop", "length", "abort"]

OPEN_THINK, CLOSE_THINK = THINK_TAGS.open, THINK_TAGS.close
"""Around the reasoning of the built-in models; others may have other tags, `policy.think_tags`."""
PROBABILITY = "probability"
"""The route, and the `task` of a prompt, whose accuracy is the probability reward."""


@dataclass(frozen=True)
class Failure:
    """Why something has no value; its text is `reason: detail`, as the ledger keeps it."""

    reason: str
    """What failures are counted by, such as `timeout`, `memory`, `crash` or `not_scorable`."""
    detail: str = ""
    """What happened to this one, for the person who looks into it."""

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else self.reason


def not_scorable(why: object) -> Failure:
    """A failure that lies in the prompt or the response, and not in the machine."""
    return Failure("not_scorable", str(why))


class Failed(Exception):
    """Raised where one request or one sample fails: it is counted, and the run goes on."""

    def __init__(self, reason: str, detail: object = "") -> None:
        # As arguments, because pickle makes an exception again from those that Exception was given.
        super().__init__(reason, str(detail))
        self.failure = Failure(reason, str(detail))

    def __str__(self) -> str:
        return str(self.failure)


@dataclass(frozen=True)
class Route:
    """Which accuracy reward applies; its text, as the ledger keeps it, is `number/2`."""

    name: str
    version: int | None = None
    """Version of the reward that gave the score; None where none was asked for a score."""

    def __str__(self) -> str:
        return self.name if self.version is None else f"{self.name}/{self.version}"

    @classmethod
    def parse(cls, text: str) -> Route:
        """Read what `str` wrote."""
        name, _, version = text.partition("/")
        return cls(name, int(version) if version else None)


def split_response(
    text: str, thinking: bool, tags: ThinkTags = THINK_TAGS
) -> tuple[str | None, str | None]:
    """Return (reasoning, answer) of a sampled text, with their white space.

    Without thinking all of it is the answer. With it, what stands before the first closing tag is
    the reasoning; a text that never closes it has no answer.
    """
    if not thinking:
        return None, text
    reasoning, closed, answer = text.partition(tags.close)
    return reasoning, answer if closed else None


@dataclass(frozen=True)
class Choice:
    """How a response began in a mode that leaves the policy to choose; read from its token ids."""

    thinking: bool
    """Whether it reasons."""
    num_tokens: int
    """Tokens of the response, from the first, that say so: its text begins behind them, as after
    the prompt of a mode that leaves no choice. 0 where the first token is no kind's."""
    is_kept: bool = True
    """Whether they are all that stands in such a prompt; a response that strays from it is a leak.
    """
    is_forced: bool = False
    """Whether they were set, and not sampled."""


@dataclass(frozen=True)
class ChoiceTokens:
    """What follows the prompt of a mode that chooses, up to where each kind's own prompt ends.

    Neither is empty, and their first tokens differ: the first token is the choice.
    """

    long: tuple[int, ...]
    short: tuple[int, ...]

    def read(self, response: Sequence[int], is_forced: bool = False) -> Choice:
        """How a response, of one token at least, began.

        Example: ChoiceTokens((7,), (8, 9)).read([8, 9, 4]) == Choice(False, 2)
        """
        for thinking, tokens in ((True, self.long), (False, self.short)):
            if response[0] == tokens[0]:
                is_kept = tuple(response[: len(tokens)]) == tokens
                return Choice(thinking, len(tokens) if is_kept else 1, is_kept, is_forced)
        # After an open tag any text is reasoning.
        return Choice(True, 0, is_kept=False)


@dataclass(frozen=True)
class Prompt:
    """One dataset row the policy is asked.

    Example: Prompt("arithmetic/17", ({"role": "user", "content": "a2b9?"},), "11", "number")
    """

    id: str
    messages: tuple[Mapping[str, Any], ...]
    """Chat messages, each with `role` and `content`, as a transformers chat template takes them."""
    reference: str
    """The reference answer the rewards compare with."""
    task: str = "auto"
    """Which accuracy reward applies; `auto` lets the reward service route by the reference."""
    mode: str | None = None
    """A mode that the dataset pins this row to; None leaves it to the draw."""
    media: tuple[Medium, ...] = ()
    """Its images and videos, in the order in which the messages show them."""
    difficulty: float | None = None
    """How hard the task says it is, in units of its own; None where it says nothing."""


@dataclass(frozen=True)
class RolloutRequest:
    """A prompt with its mode: what an engine is asked to sample."""

    group_id: str
    """`step/place/attempt`, unique in a run and the same after a resume."""
    prompt: Prompt
    mode: str
    prompt_token_ids: tuple[int, ...]
    """The chat template of the mode, tokenised, up to where sampling starts. A medium is one marker
    here, which the engine replaces by as many tokens as the policy sees of it."""
    n: int
    """Trajectories to sample (the group size)."""
    max_tokens: int
    temperature: float
    seed: int | None
    """Seed of this request alone; None samples from the engine's own stream."""
    top_p: float = 1.0
    is_pair: bool = False
    """In a mode that chooses: the first half of the trajectories is to reason, the other to answer
    at once. Not a question of chance then, so both kinds are there to be compared."""


_ARRAYS = {"token_ids": np.int32, "loss_mask": np.bool_, "rollout_logprobs": np.float32}


@dataclass(frozen=True)
class Trajectory:
    """One completion, with everything the learner and the rewards need.

    L counts prompt and response tokens together, and in the prompt every token of its media.
    """

    token_ids: NDArray[np.int32]  # [L]
    loss_mask: NDArray[np.bool_]  # [L], True on the response: what is sampled, or a forced choice
    rollout_logprobs: NDArray[np.float32]  # [L], 0 on the prompt and on a forced choice
    versions: tuple[int, int]
    """Policy version when the request entered the engine and when its last token was sampled."""
    finish_reason: FinishReason
    text: str
    """The sampled text with special tokens kept, the end-of-sequence token dropped; of a mode that
    chooses, what stands behind the choice."""
    reasoning: str | None
    """What stands before the closing think tag; None where the mode has no reasoning."""
    answer: str | None
    """What stands after it; None if a long answer never closed its reasoning."""
    end_token: int | None = None
    """The sampled end of sequence, which `text` leaves out; None where there is none, and where it
    is not known."""
    choice: Choice | None = None
    """None in a mode that leaves no choice."""

    def __getstate__(self) -> dict[str, Any]:
        """For pickle: the text once, of which reasoning and answer are the two ends.

        Arrays as bytes. In Ray's object store each would be a view of it, two objects that the
        driver's garbage collector looks through again and again: half a second for a thousand
        groups, in which nothing else goes on.
        """
        state, text = dict(self.__dict__), self.text
        for name, kind in _ARRAYS.items():
            state[name] = state[name].astype(kind, copy=False).tobytes()
        for name, holds in (("reasoning", text.startswith), ("answer", text.endswith)):
            if state[name] and holds(state[name]):
                state[name] = len(state[name])
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, kind in _ARRAYS.items():
            state[name] = np.frombuffer(state[name], kind)
        text = state["text"]
        if isinstance(length := state["reasoning"], int):
            state["reasoning"] = text[:length]
        if isinstance(length := state["answer"], int):
            # Short responses are all answer: the same string, and no copy of it.
            state["answer"] = text[len(text) - length :]
        self.__dict__.update(state)

    @property
    def num_response_tokens(self) -> int:
        return int(self.loss_mask.sum())

    @property
    def response_token_ids(self) -> NDArray[np.int32]:
        return self.token_ids[self.loss_mask]

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)


def reasons(thinking: Thinking, trajectory: Trajectory) -> bool:
    """Whether a trajectory of a mode with this `thinking` is one that reasons."""
    if thinking != "auto":
        return thinking
    assert trajectory.choice is not None, "a trajectory of a mode that chooses tells its choice"
    return trajectory.choice.thinking


@dataclass(frozen=True)
class RolloutGroup:
    """The n trajectories of one prompt in one mode, so advantages compare like with like."""

    request: RolloutRequest
    trajectories: tuple[Trajectory, ...]
    engine: int = 0
    """Place of the engine that sampled it; its prefix cache holds the trajectories for a while."""
    media_digests: tuple[str, ...] = ()
    """Of the prompt's media as the engine read them."""

    @property
    def kinds(self) -> tuple[bool | None, ...]:
        """Of each trajectory, whether it chose to reason; None in a mode that leaves no choice."""
        return tuple(t.choice and t.choice.thinking for t in self.trajectories)

    @property
    def choices(self) -> tuple[bool | None, ...]:
        """Of each trajectory, which kind's its first token is; None where it is neither's."""
        of_each = (t.choice for t in self.trajectories)
        return tuple(one.thinking if one and one.num_tokens else None for one in of_each)


@dataclass(frozen=True)
class ReferenceRequest:
    """A reference answer in a sampled answer's place: how probable does the policy find it?"""

    id: str
    """Unique among the requests in flight."""
    prompt: Prompt
    context_token_ids: tuple[int, ...]
    """Prompt and response up to where the answer begins, with one marker for each medium."""
    reference_token_ids: tuple[int, ...]
    """Tokenised apart from the context, so their boundary is exact; never empty."""
    temperature: float
    """Divides the logits, as in sampling."""
    engine: int | None = None
    """The engine that sampled the context, if it was sampled."""
    version: int | None = None
    """The policy version at which it began to sample the context, under which the engine keeps the
    context's keys and values; None if it was not sampled."""


@dataclass(frozen=True)
class NextTokenRequest:
    """How probable does an engine find each of these tokens as the very next one?"""

    id: str
    """Unique among the requests in flight."""
    prompt: Prompt
    prompt_token_ids: tuple[int, ...]
    """The prompt up to where the token goes, with one marker for each medium."""
    token_ids: tuple[int, ...]
    """Whose probability is asked: distinct, and 128 at most."""


@dataclass(frozen=True)
class Claimed:
    """The final answer that was read in a response, how it was found, and what came of it."""

    text: str
    how: str
    """`box`, `tag`, `marker` or `last claim`; nothing where no answer is claimed."""
    why: str
    """Why it is no full score; nothing where it is one."""


@dataclass(frozen=True)
class Score:
    """A reward with its parts, or a stated failure. A failure is never a silent zero."""

    reward: float | None
    """None where there is no score; such a trajectory leaves the baseline and the loss."""
    parts: Mapping[str, float] = field(default_factory=dict)
    """Every reward part before weighting: `accuracy`, `format`, `repetition`, ...; beside them,
    without a weight, what a part was made of: `probability`, `baseline`, `preference_raw`, `leak`.
    """
    route: Route | None = None
    """Which accuracy reward applied; None where it failed before one was chosen."""
    failure: Failure | None = None
    """None where `reward` is a number."""
    preference_answer: str | None = None
    """What the preference model saw beside the question; None where it was not asked."""
    claimed: Claimed | None = None
    """What rules read in the response; None where they did not decide."""


@dataclass(frozen=True)
class ScoredGroup:
    group: RolloutGroup
    scores: tuple[Score, ...]


@dataclass(frozen=True)
class ChoiceCredit:
    """Of the token by which a response chose its kind, which has a loss of its own."""

    advantage: float
    """What the kind has over the whole group (rl/loop/advantages.py)."""
    weight: float
    """Of the mean over all choices in the loss."""
    choice: Choice

    @property
    def num_tokens(self) -> int:
        """Response tokens, from the first, that are out of the response's own loss."""
        return max(1, self.choice.num_tokens) if self.choice.is_forced else 1


@dataclass(frozen=True)
class TrainSample:
    """A trajectory with its credit."""

    trajectory: Trajectory
    advantage: float
    """Of its tokens; of a mode that chooses, of those behind the choice."""
    temperature: float
    """The temperature it was sampled at; the learner divides its logits by it."""
    id: str = ""
    """Group and place in it, for errors."""
    media: tuple[Medium, ...] = ()
    """The prompt's images and videos."""
    choice: ChoiceCredit | None = None
    """None in a mode that leaves no choice."""

    @property
    def num_loss_tokens(self) -> int:
        """Response tokens that have its advantage."""
        num_chosen = self.choice.num_tokens if self.choice else 0
        return self.trajectory.num_response_tokens - num_chosen


@dataclass(frozen=True)
class TrainBatch:
    """All samples of one step; ranks cut it into micro-batches (rl/loop/batching.py)."""

    step: int
    """The step it makes, 1-based."""
    samples: tuple[TrainSample, ...]


@dataclass(frozen=True)
class BatchUpdate:
    """What the learner reports of one batch."""

    metrics: Mapping[str, float]
    """Keyed `loss/...`, `policy/...`, ..."""
    mismatches: tuple[float | None, ...]
    """Per sample: mean over its response tokens of the log-probability under the learner, before
    the first optimizer step of the batch, minus that by the engine that sampled it. None where it
    was left out of the loss (`algorithm.mask_truncated`)."""
    skipped: str | None = None
    """What went wrong, where an optimizer step was not taken; neither were those after it."""


@dataclass(frozen=True)
class Canary:
    """A response that the policy sampled once, scored by learner and engines at every publish.

    Only the response counts: tokens that the policy finds all but impossible, such as those of a
    prompt it never learned to write, amplify rounding until it hides what the canary is for.
    """

    request: RolloutRequest
    trajectory: Trajectory


@dataclass(frozen=True)
class WeightProof:
    """What one side of a publish holds: compared tensor by tensor and token by token."""

    version: int
    digests: Mapping[str, str]
    """Digest of each tensor by its checkpoint name (rl/loop/weight_digest.py)."""
    canary_logprobs: tuple[float, ...]
    """Log-probabilities of the canary's response tokens at temperature 1."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Wall-clock seconds by part: `gather`, `transfer`, `load`, `prove`."""
    unapplied: tuple[str, ...] = ()
    """Tensors that arrived with new values, by checkpoint name, while nothing in the engine that is
    made of them changed."""
    unexplained: tuple[str, ...] = ()
    """The engine's own tensors, by its names for them, that changed while nothing that they are
    made of did, or that nothing at all fills."""
