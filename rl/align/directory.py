"""The directory of an RLAIF-V pass, `runs/NAME/align/`, which is a run directory itself.

config.yaml      the resolved config              labels.sqlite  labels by content
origin.json      which policy the pass began with
iteration_1/     responses.parquet, claims.parquet, labels.parquet, pairs.parquet (align/claims),
                 pairs.json (counts), dpo/ (policy/dpo), gate.json,
                 before/ and after/ (held-out: rl/evaluate/directory.py, claims, labels)
checkpoints/     step_000001 is the policy that iteration 1 gave, if the gate let it through
metrics.jsonl    a line a DPO step                curves.png     rl/align/report.py
summary.json     before, after and every iteration

So `rl.evaluate` and `rl.export` take `run=runs/NAME/align` like any other run.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rl.config.recipe import dump
from rl.config.run import Config
from rl.run.directory import MAY_DIFFER_ON_RESUME, RunDirectory
from rl.run.files import write_text

NAME = "align"
OF_A_RUN = ("policy.ranks", "policy.zero_stage")
MAY_DIFFER = (
    # Of what a run may change on a resume, its own settings decide the figures of a pass, and a DPO
    # stage goes on with the ranks that it began with.
    *(key for key in MAY_DIFFER_ON_RESUME if key not in (*OF_A_RUN, "align")),
    # These three change no figure of an iteration.
    *("align.enabled", "align.iterations", "align.dpo.checkpoint_every"),
)
# Settings of `align` that may differ until an iteration holds such a file, by its pattern. So a
# person can mend the labeller after sampling, which is the longest stage, without losing it.
UNTIL: Mapping[str, tuple[str, ...]] = {
    "responses.*": ("prompts", "responses", "temperature", "top_p", "mix"),
    "**/claims.*": ("divider",),
    "**/labels.*": ("labeller",),
    "pairs.parquet": ("mine", "gap", "pairs_per_prompt"),
    "dpo": ("dpo",),
    "before": ("gate.prompts", "gate.samples"),
    "gate.json": ("gate.max_accuracy_drop",),
}
# Claims and labels of the responses that lie in the same directory: those of an iteration itself,
# and the held-out ones below it.
CLAIMS, LABELS = "claims.parquet", "labels.parquet"


@dataclass(frozen=True)
class Origin:
    """The policy that a pass begins with: a run's checkpoint, or another model."""

    model: Path
    identity: Mapping[str, Any]
    """What tells it from any other policy."""
    progress: Mapping[str, Any]
    """What its checkpoint knows of its training."""
    step: int
    """RL steps that it was trained for here."""
    ledger: Path
    """Where its run kept trajectories, if it did."""


class IterationFiles:
    """Where the stages of one iteration leave what they made."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.responses = root / "responses.parquet"
        self.pairs = root / "pairs.parquet"
        self.pair_counts = root / "pairs.json"
        self.dpo = root / "dpo"
        self.gate = root / "gate.json"
        self.before = root / "before"
        self.after = root / "after"

    def verdict(self) -> dict[str, Any]:
        """What the gate decided, and by which figures."""
        return json.loads(self.gate.read_text(encoding="utf-8"))


class AlignmentDirectory(RunDirectory):
    def __init__(self, run: Path) -> None:
        """run: directory of the run whose policy is aligned."""
        super().__init__(run / NAME)
        self.labels = self.root / "labels.sqlite"

    def iteration(self, number: int) -> IterationFiles:
        return IterationFiles(self.root / f"iteration_{number}")

    @contextmanager
    def open_pass(self, config: Config, origin: Mapping[str, Any]) -> Iterator[None]:
        """Own the directory for the block; raises ValueError if it cannot go on with these."""
        origin_path = self.root / "origin.json"
        with self.hold():
            if self.iteration(1).root.exists():
                self.refuse_other_settings(
                    json.loads(origin_path.read_text(encoding="utf-8")),
                    origin,
                    content="was begun with another policy",
                    advice="Name the one before with step= or model=, another directory with run= "
                    "for a model, or remove it",
                )
                # A stage that has not begun yet may still be set otherwise.
                later = (
                    f"align.{key}"
                    for pattern, keys in UNTIL.items()
                    if not any(self.root.glob(f"iteration_*/{pattern}"))
                    for key in keys
                )
                self.refuse_other_settings(
                    self.stored_config().model_dump(mode="json"),
                    config.model_dump(mode="json"),
                    (*MAY_DIFFER, *later),
                    content="was begun with other settings",
                    advice="Give the old ones to go on. To start again with these, remove all in "
                    "it but labels.sqlite, which keeps what was asked",
                )
            elif self.has_begun():
                # Steps and figures of two passes would stand in one file.
                raise ValueError(
                    f"{self.root} has checkpoints or metrics of a pass whose iterations are gone; "
                    "remove or rename it"
                )
            write_text(self.config_path, dump(config))
            write_text(origin_path, json.dumps(dict(origin), indent=1) + "\n")
            self.checkpoints.remove_partials()
            yield
