"""What a pass is made of, and one iteration of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl.align.console import AlignmentConsole
from rl.align.directory import AlignmentDirectory, IterationFiles
from rl.assembly import Material
from rl.config.run import Config
from rl.run.sinks import Sinks
from rl.system.cluster import Cluster

if TYPE_CHECKING:
    from rl.align.assistants import AssistantSource


@dataclass(frozen=True)
class Origin:
    """The policy that a pass begins with."""

    model: Path
    name: str
    identity: Mapping[str, Any]
    """What tells it from any other."""
    progress: Mapping[str, Any]
    """What its checkpoint knows of its training."""
    step: int
    """RL steps it was trained for here."""
    ledger: Path
    """Where its run kept trajectories, if it did."""


@dataclass(frozen=True)
class Parts:
    """What every iteration works with."""

    material: Material
    origin: Origin
    labeller: AssistantSource
    divider: AssistantSource | None
    """None where rules divide."""
    directory: AlignmentDirectory
    console: AlignmentConsole


@dataclass(frozen=True)
class Iteration:
    """From a policy to the one that may take its place."""

    parts: Parts
    cluster: Cluster
    sinks: Sinks
    number: int
    """From 1."""
    model: Path
    """The policy that answers, and the reference of DPO."""
    num_accepted: int
    """Iterations before it whose policy was."""

    @property
    def config(self) -> Config:
        return self.parts.material.config

    @property
    def console(self) -> AlignmentConsole:
        return self.parts.console

    @property
    def files(self) -> IterationFiles:
        return self.parts.directory.iteration(self.number)
