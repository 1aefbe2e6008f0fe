"""The types that flow through an RLAIF-V pass (https://arxiv.org/abs/2405.17220), one per stage.

    Response -> DividedResponse -> JudgedResponse -> PreferencePair

Each type wraps the one before it. `files.py` keeps them on disk. Loads without torch.
"""

import math
from dataclasses import dataclass

from rl.loop.stages import Prompt


@dataclass(frozen=True)
class Response:
    """One response that the policy sampled."""

    prompt: Prompt
    mode: str
    index: int
    """Its number among the responses to this prompt in this mode, from 0."""
    token_ids: tuple[int, ...]
    """The sampled tokens, with the end-of-sequence token if it was sampled."""
    text: str
    answer: str | None
    """The final answer, which alone is divided into claims; None where there is none."""

    @property
    def key(self) -> tuple[str, str, int]:
        return self.prompt.id, self.mode, self.index


@dataclass(frozen=True)
class Claim:
    """A statement that can be checked without the rest of the answer.

    Example: Claim("The cup is red.", "Is it correct that the cup is red? Please answer yes or no.")
    """

    text: str
    question: str
    """Asks whether the claim is true. The labeller sees this question and the media, no more."""


@dataclass(frozen=True)
class DividedResponse:
    response: Response
    claims: tuple[Claim, ...]
    """In the order of the answer; empty where it states no fact."""
    divider: str
    """What divided it, with its version."""
    fallback: str | None = None
    """Why another divider than the configured one did it; None where the configured one did."""


@dataclass(frozen=True)
class Label:
    """How probable a labeller finds yes and no; raises ValueError for what is no probability."""

    p_yes: float
    p_no: float

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            # A sum over spellings in single precision can end a little above 1.
            if not (math.isfinite(value) and 0.0 <= value <= 1.001):
                raise ValueError(f"{name} of a label must be a probability, got {value!r}")

    @property
    def is_accepted(self) -> bool:
        """Whether the claim counts as true; a tie does not."""
        return self.p_yes > self.p_no


@dataclass(frozen=True)
class JudgedResponse:
    response: Response
    claims: tuple[Claim, ...]
    labels: tuple[Label | None, ...]
    """One per claim; None where the labeller gave none."""

    @property
    def is_complete(self) -> bool:
        """Whether every claim has a label."""
        return None not in self.labels

    @property
    def num_wrong(self) -> int:
        """Claims that were rejected; raises ValueError if some have no label."""
        # A claim without a label is not known to be right, so it must not count as right.
        if missing := self.labels.count(None):
            raise ValueError(
                f"{missing} of {len(self.labels)} claims of response {self.response.key} have no "
                "label; leave such a response out"
            )
        return sum(label is not None and not label.is_accepted for label in self.labels)

    @property
    def score(self) -> float:
        """Minus the number of rejected claims."""
        return float(-self.num_wrong)


@dataclass(frozen=True)
class RewardedResponse:
    """A response of an RL run, which has a reward in place of claims."""

    response: Response
    """Its index is that of the trajectory in its group."""
    group_id: str
    score: float
    """The figure that the pair was chosen by: the reward, or its accuracy part."""


# What a pair is made of; both have a score, and only one of them has claims.
ScoredResponse = JudgedResponse | RewardedResponse


@dataclass(frozen=True)
class PreferencePair:
    """Two responses to one prompt in one mode, of which the first is the better one."""

    chosen: ScoredResponse
    rejected: ScoredResponse

    def __post_init__(self) -> None:
        chosen, rejected = self.chosen, self.rejected
        is_alike = chosen.response.key[:2] == rejected.response.key[:2]
        if not (is_alike and chosen.score > rejected.score):
            raise ValueError(
                "the responses of a pair need one prompt and mode, and the chosen one the higher "
                f"score, got {chosen.score} and {rejected.score} in {self.id}"
            )

    @property
    def prompt(self) -> Prompt:
        return self.chosen.response.prompt

    @property
    def mode(self) -> str:
        return self.chosen.response.mode

    @property
    def id(self) -> str:
        """Unique among the pairs of one file. Example: "arithmetic/17/short/0>3" """
        # An RL run asks a prompt again in later steps, so there the prompt alone is not enough.
        group = f"/{self.chosen.group_id}" if isinstance(self.chosen, RewardedResponse) else ""
        indices = f"{self.chosen.response.index}>{self.rejected.response.index}"
        return f"{self.prompt.id}{group}/{self.mode}/{indices}"
