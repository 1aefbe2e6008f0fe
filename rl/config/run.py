"""The whole configuration: frozen, checked once, importable without torch.

`rl/config/recipe.py` reads YAML and the command line into it. Each section stands in the file of
its name; small sections, and the rules that hold between sections, stand here. Settings of vLLM
and DeepSpeed pass through as tables instead of being declared again.
"""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, model_validator

from rl.config.align import AlignConfig
from rl.config.data import SourceConfig
from rl.config.policy import AlgorithmConfig, GuardConfig, PolicyConfig
from rl.config.reward import RewardConfig
from rl.config.rollout import EvalConfig, ModeConfig, RolloutConfig, SharePoint
from rl.config.section import Section, refuse_secrets

ENGINE_SIZES = (
    "tensor_parallel_size",
    "pipeline_parallel_size",
    "data_parallel_size",
    "prefill_context_parallel_size",
)
"""The arguments of vLLM that decide how many processes an engine has."""


class SyncConfig(Section):
    """How new weights reach the engines."""

    transport: Literal["auto", "host", "nccl", "ipc"] = "auto"
    """`host` is a shared-memory file, `nccl` NCCL, `ipc` CUDA IPC for engines that share the
    learner's GPUs; `auto` takes what suits the placement."""
    deadline_s: float = Field(default=300, gt=0)
    """Seconds that each step of a publish may take; nothing waits for ever."""
    canary_tolerance: float | None = Field(default=None, gt=0)
    """The most by which log-probabilities of engine and learner may differ on the canary: any token
    in float32 (by default 1e-4), the mean over all in bfloat16 (0.2)."""


class CheckpointConfig(Section):
    """When the run is saved."""

    every: int = Field(default=50, gt=0)
    """Steps between checkpoints; the last step is always saved."""
    keep_last: int = Field(default=2, gt=0)
    """How many of the newest checkpoints are kept."""
    # SLURM's own default, between SIGTERM and SIGKILL, is 30 s; --signal=TERM@300 gives more.
    grace_s: float = Field(default=240, gt=0)
    """Seconds after SIGTERM in which the run is saved; what it waits for of engines is given up at
    once, an update that is under way is not. After them it ends without, at the checkpoint before.
    """


class RecoveryConfig(Section):
    """What a run does when one of its processes dies, hangs, or keeps all others waiting."""

    restarts_per_hour: int = Field(default=6, ge=0)
    """Times that the same process may be replaced within an hour; once more ends the run. The ranks
    of the learner count as one process, because they restart together. 0 replaces nothing."""
    heartbeat_s: float = Field(default=120, gt=0)
    """Seconds for which a process may answer nothing, however busy it is, before it is killed and
    replaced; while weights are sent `sync.deadline_s` holds for engines."""
    wait_s: float = Field(default=1800, gt=0)
    """Seconds that a run waits for engines while fewer than `rollout.min_workers` serve; then it
    ends and names those that it waited for."""
    stall_s: float = Field(default=3600, gt=0)
    """Seconds in which no call to any process is answered, after which the stacks of all processes
    are written to `logs/` of the run's directory and the one that is waited for is replaced; the
    second time in a row the run ends with its name."""


class ResourcesConfig(Section):
    """What the run takes of the machine or cluster."""

    ray_address: str | None = None
    """Ray cluster to join, `auto` for the one of this node; null starts a Ray of its own."""
    working_dir: str | None = None
    """Directory that Ray copies to every node of the cluster that is joined, such as `.`, so that
    its code runs there; null where all nodes have the same code already."""
    gpus: int = Field(default=0, ge=0)
    """GPUs that the run takes in all; 0 runs on CPU."""
    nodes: int = Field(default=1, gt=0)
    """Nodes that the run may be spread over; at 1 all of it stands on the same node, and more need
    a Ray cluster to join."""
    colocate: bool = False
    """Engines and learner ranks share the same GPUs; weights then travel by CUDA IPC."""
    engine_cpus: float = Field(default=1, gt=0)
    """CPU cores that Ray reserves per engine."""
    rank_cpus: float = Field(default=1, gt=0)
    """CPU cores that Ray reserves per learner rank."""
    memory_growth: float = Field(default=2.0, gt=1)
    """Times its resident size after the first 20 steps from which an engine, a rank or the rewards
    are replaced, once what they were asked is done; the driver is named."""


class LogConfig(Section):
    """Where metrics and samples go, besides metrics.jsonl."""

    tensorboard: bool = True
    """Write TensorBoard events to `tensorboard/` of the run's directory."""
    wandb_project: str | None = None
    """Also log to this Weights & Biases project."""
    ledger: bool = True
    """Write every trajectory with its scores to `ledger/` of the run's directory."""


class Config(Section):
    """One run, from its data to its logs."""

    run: str
    """The run's directory; by default runs/ and the name of the recipe."""
    # 31 bits are what every library that is seeded with it can take.
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Decides prompts, modes and, with rollout.seed_requests, samples."""
    steps: int = Field(gt=0)
    """Loop steps, each one batch and one publish."""
    resume: Literal["auto", "never"] = "auto"
    """`auto` goes on with a run directory that exists; `never` refuses it."""
    modes: dict[str, ModeConfig] = Field(min_length=1)
    """The modes of answering, by name."""
    share_schedule: list[SharePoint] = []
    """Shares of the modes over the run; empty holds `modes.*.share` throughout."""
    data: SourceConfig
    policy: PolicyConfig = PolicyConfig()
    algorithm: AlgorithmConfig = AlgorithmConfig()
    guard: GuardConfig = GuardConfig()
    rollout: RolloutConfig
    reward: RewardConfig = RewardConfig()
    sync: SyncConfig = SyncConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    eval: EvalConfig = EvalConfig()
    recovery: RecoveryConfig = RecoveryConfig()
    resources: ResourcesConfig = ResourcesConfig()
    align: AlignConfig = AlignConfig()
    log: LogConfig = LogConfig()

    @model_validator(mode="after")
    def _holds_no_secret(self) -> Config:
        # Such as an argument of vLLM among those that pass through.
        refuse_secrets(self.model_dump())
        return self

    @model_validator(mode="after")
    def _modes_fit(self) -> Config:
        """Shares add up, budgets leave room for the prompt, and no section names another mode."""
        shares = {"modes.*.share": {name: mode.share for name, mode in self.modes.items()}}
        for index, point in enumerate(self.share_schedule):
            # Also a mode with a share of 0, because between points shares are interpolated.
            if unknown := set(point.shares) ^ set(self.modes):
                raise ValueError(
                    f"share_schedule[{index}].shares must name every mode and no other: "
                    f"{sorted(unknown)} differ from modes {sorted(self.modes)}"
                )
            shares[f"share_schedule[{index}].shares"] = point.shares
        if self.align.mix:
            shares["align.mix"] = self.align.mix
        for key, by_mode in shares.items():
            total = sum(by_mode.values())
            # The shares of two layers do not add up by themselves, so this is the commonest
            # mistake. Thirds cannot be written exactly.
            if not math.isclose(total, 1.0, abs_tol=1e-6):
                listed = " + ".join(f"{name} {share}" for name, share in by_mode.items())
                raise ValueError(f"{key} must sum to 1, got {total:g} ({listed})")
        steps = [point.step for point in self.share_schedule]
        if steps != sorted(set(steps)):
            raise ValueError(f"share_schedule steps must increase, got {steps}")
        # Long prompts are found later, when the data are read; here some room must be left at all.
        for name, mode in self.modes.items():
            if mode.max_tokens >= self.rollout.max_model_length:
                raise ValueError(
                    f"modes.{name}.max_tokens={mode.max_tokens} must leave room for the prompt in "
                    f"rollout.max_model_length={self.rollout.max_model_length}; change one of them"
                )
        named = {
            "reward.mode_weights": self.reward.mode_weights,
            "reward.overlong_window": self.reward.overlong_window,
            "align.mix": self.align.mix,
        }
        for key, by_mode in named.items():
            if unknown := sorted(set(by_mode) - set(self.modes)):
                raise ValueError(
                    f"{key} names unknown modes {unknown}; modes are {sorted(self.modes)}"
                )
        for mode, window in self.reward.overlong_window.items():
            if not 0 < window <= self.modes[mode].max_tokens:
                raise ValueError(
                    f"reward.overlong_window.{mode} must be between 1 and the mode's max_tokens "
                    f"{self.modes[mode].max_tokens}, got {window}"
                )
        return self

    @model_validator(mode="after")
    def _sections_fit(self) -> Config:
        """What one section asks for, the others allow."""
        align, probability = self.align, self.reward.probability
        if taken := sorted(self.choosing & {name for name, share in align.mix.items() if share}):
            raise ValueError(
                f"align.mix takes {taken}, in which the policy chooses how to answer, and a pass "
                "aligns answers alone; give the shares to the modes that it chooses between"
            )
        if align.enabled and self.choosing == set(self.modes):
            raise ValueError(
                "align.enabled needs a mode whose thinking is true or false, because a pass aligns "
                "answers and not the choice between two ways to answer; add one, of share 0"
            )
        if align.mine and align.iterations > 1:
            raise ValueError(
                f"align.mine={align.mine} would take the same pairs in each of "
                f"align.iterations={align.iterations}; set one of them otherwise"
            )
        # A pass that is not asked for here need not fit: rl.align checks again for its own run.
        if align.enabled:
            align.dpo.accumulation(self.policy.ranks)
            if align.mine and not self.log.ledger:
                raise ValueError("align.mine takes pairs from the ledger; set log.ledger=true")
        is_on_engine = probability is not None and probability.scorer == "engine"
        if is_on_engine and self.rollout.engine.get("speculative_config"):
            raise ValueError(
                "engines that decode speculatively cannot be forced to score; leave out "
                "rollout.engine.speculative_config, or set reward.probability.scorer=learner"
            )
        # A batch is cut into as many parts, and each needs one group at least.
        if self.rollout.prompts_per_step < self.algorithm.updates_per_batch:
            raise ValueError(
                "algorithm.updates_per_batch must not exceed rollout.prompts_per_step, got "
                f"{self.algorithm.updates_per_batch} > {self.rollout.prompts_per_step}"
            )
        return self

    @model_validator(mode="after")
    def _gpus_are_placed(self) -> Config:
        engines = self.rollout.workers * self.rollout.tensor_parallel
        ranks = self.policy.ranks
        gpus = self.resources.gpus
        preference = self.reward.preference
        preference_gpus = preference.actors * preference.gpus if preference else 0
        # A judge is a vLLM engine, which takes the memory of a whole GPU for its cache.
        if preference and preference.kind == "judge" and gpus and not preference.gpus:
            raise ValueError(
                "a judge on a machine with GPUs needs one of its own; set "
                "reward.preference.gpus=1 and count it in resources.gpus"
            )
        if preference and preference.kind == "classifier" and preference.gpus > 1:
            raise ValueError(
                f"a classifier runs on one GPU, got reward.preference.gpus={preference.gpus}; "
                "raise reward.preference.actors instead"
            )
        if gpus == 0 and (self.resources.colocate or self.sync.transport in ("nccl", "ipc")):
            raise ValueError(
                "resources.colocate and sync.transport nccl or ipc need GPUs, got "
                "resources.gpus=0; take a scale with GPUs or leave them out"
            )
        if gpus == 0 and self.resources.nodes > 1:
            raise ValueError(
                "runs without GPUs stay on one node, because weights travel through its shared "
                f"memory, got resources.nodes={self.resources.nodes}"
            )
        kernels = {
            f"policy.attention={self.policy.attention}": self.policy.attention != "sdpa",
            "policy.fused_layers=true": self.policy.fused_layers,
        }
        if not gpus and any(kernels.values()):
            named = " and ".join(name for name, is_set in kernels.items() if is_set)
            raise ValueError(
                f"{named} takes kernels that run on GPUs alone, got resources.gpus=0; leave it "
                "out, or take a scale with GPUs"
            )
        if self.num_gpus_taken > gpus:
            raise ValueError(
                f"resources.gpus must hold what the run takes: {engines} for engines "
                f"(rollout.workers x tensor_parallel), {ranks} for learner ranks and "
                f"{preference_gpus} for the preference model (reward.preference.gpus; 0 runs it "
                f"on CPU) make {self.num_gpus_taken}, got {gpus}"
            )
        # CUDA IPC hands memory from one process to another on the same GPU, so they go in pairs.
        if gpus and self.resources.colocate and engines != ranks:
            raise ValueError(
                "resources.colocate needs as many learner ranks as engine GPUs, got policy.ranks="
                f"{ranks} and {engines} engine GPUs"
            )
        return self

    @model_validator(mode="after")
    def _engines_can_sleep(self) -> Config:
        if not self.rollout.sleep:
            return self
        if not self.resources.colocate:
            raise ValueError(
                "rollout.sleep=true makes room for a learner on the same GPU, and here the engines "
                "have their own; leave rollout.sleep out, or set resources.colocate=true"
            )
        if self.rollout.max_staleness:
            raise ValueError(
                "rollout.sleep=true stops sampling during an update and drops the KV cache of what "
                f"is in flight, got rollout.max_staleness={self.rollout.max_staleness}, which "
                "samples meanwhile; set one of them otherwise (rollout.keep_kv_cache does not help)"
            )
        return self

    @model_validator(mode="after")
    def _weights_can_travel(self) -> Config:
        """The transport leads from the learner's ranks to every process of every engine."""
        resources, transport = self.resources, self.transport
        if transport == "ipc" and not resources.colocate:
            raise ValueError(
                "sync.transport=ipc hands weights over on the same GPU, and here the engines have "
                "GPUs of their own; set resources.colocate=true, or leave sync.transport out"
            )
        if transport == "nccl" and resources.colocate:
            raise ValueError(
                "sync.transport=nccl takes one process a GPU, and with resources.colocate=true an "
                "engine and a rank share each; leave sync.transport out, which takes ipc"
            )
        if transport == "host" and resources.nodes > 1:
            raise ValueError(
                "sync.transport=host is a file in the memory of one node, got resources.nodes="
                f"{resources.nodes}; leave sync.transport out"
            )
        if resources.working_dir is not None and resources.ray_address is None:
            raise ValueError(
                f"resources.working_dir={resources.working_dir} is for the nodes of a cluster to "
                "join, and a Ray of its own has one node; set resources.ray_address=auto, or leave "
                "it out"
            )
        if resources.nodes > 1 and resources.ray_address is None:
            raise ValueError(
                f"resources.nodes={resources.nodes} needs a Ray cluster to join, and a Ray of its "
                "own has one node; set resources.ray_address=auto on a node of the cluster"
            )
        # An engine's bundle holds rollout.tensor_parallel GPUs of one node, and the learner numbers
        # the processes of all engines by it: with other sizes, numbers would be given twice, and
        # all would wait for processes that never come.
        if sizes := sorted(set(ENGINE_SIZES) & set(self.rollout.engine)):
            raise ValueError(
                f"rollout.engine sets {', '.join(sizes)}, and an engine is as many processes as "
                "rollout.tensor_parallel says; set that, and rollout.workers for more engines"
            )
        return self

    def without_preference(self) -> Config:
        """The same configuration without a preference model.

        A preference is relative to the rest of a group, so responses that come one at a time have
        none.
        """
        reward = self.reward.model_copy(update={"preference": None})
        return self.model_copy(update={"reward": reward})

    @property
    def choosing(self) -> set[str]:
        """The modes in which the policy chooses whether to reason."""
        return {name for name, mode in self.modes.items() if mode.thinking == "auto"}

    @property
    def num_gpus_taken(self) -> int:
        """GPUs that engines, learner ranks and preference models run on."""
        engines, ranks = self.rollout.workers * self.rollout.tensor_parallel, self.policy.ranks
        # Colocated, an engine and a rank share each GPU.
        policy = max(engines, ranks) if self.resources.colocate else engines + ranks
        preference = self.reward.preference
        taken = policy if self.resources.gpus else 0
        return taken + (preference.actors * preference.gpus if preference else 0)

    @property
    def rank_threads(self) -> int:
        """Torch threads of each learner rank."""
        resources, ranks = self.resources, self.policy.ranks
        if resources.gpus:
            # They are for what the CPU does meanwhile: an optimizer that is offloaded, and pictures
            # to decode.
            return max(1, int(resources.rank_cpus))
        if self.policy.threads is not None:
            return self.policy.threads
        # Engines that sample while the ranks update need their cores themselves.
        idle = self.rollout.workers * resources.engine_cpus if not self.rollout.max_staleness else 0
        return max(1, int(resources.rank_cpus + idle / ranks))

    @property
    def rank_row_tokens(self) -> int:
        """The most tokens of one row on a learner rank, whatever policy.micro_batch_tokens says."""
        # Ranks that share rows have a stretch of each, all of the same length.
        return math.ceil(self.rollout.max_model_length / self.policy.sequence_parallel)

    @property
    def transport(self) -> Literal["host", "nccl", "ipc"]:
        if self.sync.transport != "auto":
            return self.sync.transport
        with_gpus = "ipc" if self.resources.colocate else "nccl"
        return with_gpus if self.resources.gpus else "host"

    @property
    def engines_sleep(self) -> bool:
        """Whether engines give up their GPU's memory while the learner updates."""
        if self.rollout.sleep is not None:
            return self.rollout.sleep
        return self.resources.colocate and not self.rollout.max_staleness

    @property
    def canary_tolerance(self) -> float:
        if self.sync.canary_tolerance is not None:
            return self.sync.canary_tolerance
        # bfloat16 keeps 8 bits of a number, and engine and learner round at other places. That
        # makes a mean of 0.01 to 0.03, which grows as the policy unlearns the canary; weights that
        # are wrong make several tenths.
        return 1e-4 if self.policy.dtype == "float32" else 0.2

    @property
    def canary_largest(self) -> float:
        """The most by which a single log-probability may differ."""
        # In bfloat16 a single token says little: of thousands one differs by half a nat. So only
        # what no rounding makes is refused, 10 nats.
        return self.canary_tolerance if self.policy.dtype == "float32" else 10.0
