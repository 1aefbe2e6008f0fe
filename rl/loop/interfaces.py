"""Where Ray, vLLM, DeepSpeed and the reward workers enter: the loop knows only these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rl.data.media.names import Medium
from rl.loop.stages import (
    BatchUpdate,
    Failed,
    NextTokenRequest,
    ReferenceRequest,
    RolloutGroup,
    RolloutRequest,
    Score,
    TrainBatch,
    TrainSample,
    WeightProof,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class GenerationFailed(Failed):
    """A request gave no usable group; the loop counts it and asks for another prompt."""


class PromptTooLong(GenerationFailed):
    """The prompt, with all tokens of its media, is longer than the engine takes."""


class WorkerFailed(RuntimeError):
    """A process without which nothing goes on ended or cannot start; says why in its last line.

    The traceback is in that process's log, so a command prints this message alone.
    """


class EngineLost(WorkerFailed):
    """An engine was lost and is being replaced; what it was to do can be asked of the others."""


class LearnerLost(WorkerFailed):
    """A rank of the learner was lost, and with it what the others hold: all must start again."""

    discarded = 0
    """Groups that were asked for and will not be trained on, since their versions are gone."""


# Protocols and not base classes: rollout, policy and rewards must not import each other, and each
# can be tested with a few lines that stand for the others.
class Sampler(Protocol):
    """Answers requests: engines, or a server (rollout/endpoint.py)."""

    async def generate(self, request: RolloutRequest) -> RolloutGroup:
        """Return the whole group, or raise GenerationFailed. What is gone raises its own error."""
        ...


class Engine(Sampler, Protocol):
    """Samples groups; holds proven weights of one version."""

    async def sleep(self) -> None:
        """Free the memory of GPUs that the learner shares, until the next `pause` and `resume`."""
        ...

    # The four calls of a publish go to the same engines, those that are there when it begins. Each
    # raises EngineLost if one of these is lost, after which the publish begins anew.

    async def pause(self) -> None:
        """Freeze requests in flight until `resume`; returns when no engine computes.

        Engines that sleep are ready for new weights then.
        """
        ...

    async def resume(self, version: int) -> None:
        """Go on sampling; trajectories that end from here on carry `version`."""
        ...

    async def watch(self) -> None:
        """Raise as soon as an engine has died, and name it; does not return before."""
        ...

    async def prove(self, version: int) -> list[WeightProof]:
        """One proof per vLLM worker process of what arrived in the last transfer."""
        ...


class ReferenceScorer(Protocol):
    """Says how probable the current policy finds a reference answer: engines or learner."""

    async def reference_logprobs(self, request: ReferenceRequest) -> tuple[float, ...]:
        """Log-probability of each reference token, or GenerationFailed."""
        ...


class NextToken(Protocol):
    """Says how probable a language model finds each of a few tokens as the next one."""

    async def next_token_logprobs(self, request: NextTokenRequest) -> tuple[float, ...]:
        """Log-probability of each of `request.token_ids`, or GenerationFailed."""
        ...


class VisualArguments(Protocol):
    """The media of one micro-batch."""

    def arguments(
        self, device: torch.device | str = "cpu", dtype: torch.dtype = ...
    ) -> dict[str, Any]:
        """Keyword arguments of the backbone, on its device and with pixels in its type."""
        ...


class VisualInputs(Protocol):
    """Reads media and lays them out as one family of models takes them: policies in training, and
    reward models that see."""

    def __call__(self, samples: Sequence[TrainSample], token_ids: Tensor) -> VisualArguments | None:
        """Media of the samples that begin the rows of token_ids [B, T]; None if there are none.

        Raises ValueError, naming the sample, if its tokens have other visual tokens than its media
        give here: the engine then saw something else.
        """
        ...

    def expanded(self, token_ids: Sequence[int], media: Sequence[Medium]) -> tuple[int, ...]:
        """A prompt's tokens with all visual tokens of its media in place of their markers."""
        ...


class Scorer(Protocol):
    """Scores groups. It never raises for a bad trajectory; its failure is in the Score."""

    async def score(self, group: RolloutGroup) -> tuple[Score, ...]: ...

    def learnt(self, request: RolloutRequest) -> Mapping[str, float]:
        """What scoring this group left behind for groups to come, by name."""
        ...

    def recall(self, learnt: Mapping[str, float]) -> None:
        """Take over what an earlier process learnt from groups that are not scored again."""
        ...


class Learner(Protocol):
    """Updates the policy and gives its weights away."""

    async def update(self, batch: TrainBatch) -> BatchUpdate:
        """Take the optimizer steps of one batch."""
        ...

    async def send_weights(self, version: int) -> WeightProof:
        """Transfer every tensor to the engines and return the learner's own proof."""
        ...

    async def save(self, directory: Path) -> None:
        """Write model, optimizer and schedule into an existing, empty directory."""
        ...


class MetricSink(Protocol):
    """Receives the metrics of each step. A sink may fail; training may not."""

    def write(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...
