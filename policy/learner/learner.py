"""The learner that the loop knows: DeepSpeed ranks as Ray actors, driven in step.

    update:  a share for every rank -> sums of all ranks -> metrics

Waits for all ranks of a call; unblocked at once by the first rank that fails, because the others
then wait in a collective for one that will not come.
"""

import asyncio
import os
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import ray
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from policy.learner.rank import LearnerRank, RankUpdate
from policy.learner.shares import share_batch
from policy.learner.usage import usage_metrics
from rl.config.run import Config
from rl.loop.interfaces import LearnerLost, WorkerFailed
from rl.loop.losses import is_in_loss, loss_metrics, reduce_sums
from rl.loop.stages import BatchUpdate, Canary, ReferenceRequest, TrainBatch, WeightProof
from rl.system.actors import ActorDied, call, call_all, kill_actor
from rl.system.cluster import Cluster
from rl.system.node_checks import bundle_nodes
from rl.system.supervision import Supervisor, watch_over
from rl.system.vitals import VITALS, Vitals, end_processes
from rl.system.worker_logs import log_variables

T = TypeVar("T")

WHO = "learner rank"
START_TIMEOUT_S = 900.0
UPDATE_TIMEOUT_S = 7200.0
CHECKPOINT_TIMEOUT_S = 3600.0
ENDS_S = 5.0


def rank_bundles(cluster: Cluster) -> list[int]:
    """The bundle of each rank: ranks are numbered by node, so that neighbours share one.

    Ray may spread bundles over the nodes in any order, and groups of ranks with consecutive numbers
    (Ulysses, ZeRO++'s secondary partitions) talk to each other all the time.
    """
    bundles = cluster.placement.rank_bundles
    nodes = bundle_nodes(cluster.group)
    order = list(dict.fromkeys(nodes[bundle] for bundle in bundles))
    return sorted(bundles, key=lambda bundle: order.index(nodes[bundle]))


def rank_actor(
    rank_class: type,
    config: Config,
    cluster: Cluster,
    rank: int,
    bundle: int,
    environment: Mapping[str, str],
) -> Any:
    """Return the actor class of a rank, placed in its bundle.

    bundle: that of `rank_bundles`. environment: variables beside those that all ranks have.
    """
    use_cuda = config.resources.gpus > 0
    variables = {
        "DS_ACCELERATOR": "cuda" if use_cuda else "cpu",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        "PYTHONWARNINGS": "ignore",
        **environment,
        **log_variables(cluster.logs, f"rank {rank}"),
    }
    variables["OMP_NUM_THREADS"] = str(config.rank_threads)
    # Threads that wait for work by spinning take the cores from the engines and from each other.
    variables["OMP_WAIT_POLICY"] = "PASSIVE"
    watched: Any = ray.remote(concurrency_groups={VITALS: 1})(rank_class)
    return watched.options(
        num_cpus=config.resources.rank_cpus,
        num_gpus=1 if use_cuda else 0,
        # A rank that came back alone would find no peers: all start again, from a checkpoint.
        max_restarts=0,
        runtime_env={"env_vars": variables},
        scheduling_strategy=PlacementGroupSchedulingStrategy(cluster.group, bundle),
    )


class Receivers(Protocol):
    """The engines that a publish goes to."""

    @property
    def receivers(self) -> Sequence[Any]:
        """Their rollout workers (Ray actors); others after an engine was lost or has joined."""
        ...


class RayLearner:
    """Implements rl.loop.interfaces.Learner and ReferenceScorer.

    Raises LearnerLost where a rank died, fell silent or missed a deadline. Then nothing but
    `restart` is left to do.
    """

    def __init__(
        self, config: Config, model: Path, cluster: Cluster, supervisor: Supervisor | None = None
    ) -> None:
        """Create the actors; they load nothing before `start`. model: the policy's directory."""
        self._config, self._model, self._cluster = config, model, cluster
        self.device: str | None = None
        """The GPU's name, once there was an update on one."""
        self._supervisor = supervisor or Supervisor(config.recovery)
        self._references: list[tuple[ReferenceRequest, asyncio.Future[tuple[float, ...]]]] = []
        self._forwards: set[asyncio.Task[None]] = set()
        self._one_forward = asyncio.Lock()
        self._engines: Receivers | None = None
        self._canary: Canary | None = None
        self._create()

    def _create(self) -> None:
        config, cluster = self._config, self._cluster
        environment = {"VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "ERROR")}
        self.ranks = [
            rank_actor(LearnerRank, config, cluster, rank, bundle, environment).remote(
                config, cluster.on_node_of(bundle, self._model), rank
            )
            for rank, bundle in enumerate(rank_bundles(cluster))
        ]
        self._connected: list[Any] = []
        """The rollout workers that the ranks know."""
        self._vitals: dict[int, Vitals] = {}
        self._watches: list[asyncio.Task[None]] = []
        self._lost = ""
        """Why the ranks are of no use any more."""

    async def start(self) -> None:
        """Load the policy on every rank; returns when all can update."""
        await self._call("start", START_TIMEOUT_S, *await self._free_address())
        watches = (self._watch_over(index, rank) for index, rank in enumerate(self.ranks))
        self._watches = [self._supervisor.in_background(watch) for watch in watches]

    async def _watch_over(self, index: int, rank: Any) -> None:
        """Kill a rank that has fallen silent, which ends the calls that wait for it."""

        who = f"{WHO} {index}"

        def heard(vitals: Vitals) -> None:
            self._vitals[index] = vitals
            self._supervisor.heard(who, vitals)

        loss = await watch_over(rank, lambda _: self._supervisor.config.heartbeat_s, heard)
        self._supervisor.event("lost", who, loss.why)
        self._supervisor.note(f"{who}: {loss.why}")

    async def restart(self) -> None:
        """End all ranks, whatever they do, and start new ones from the policy's directory."""
        await self.close()
        self._create()
        await self.start()

    async def devices_by_engine(self) -> list[str]:
        """CUDA devices of each colocated engine: those of the learner ranks in its bundle."""
        devices = await self._call("visible_devices", START_TIMEOUT_S)
        # By bundle, which an engine shares with its ranks, wherever these are in the numbering.
        of_rank = zip(rank_bundles(self._cluster), devices, strict=True)
        by_bundle: dict[int, list[str]] = {}
        for bundle, device in of_rank:
            by_bundle.setdefault(bundle, []).append(device)
        return [",".join(by_bundle[b]) for b in self._cluster.placement.engine_bundles]

    async def update(self, batch: TrainBatch) -> BatchUpdate:
        """Take the optimizer steps of one batch."""
        if not batch.samples:
            raise ValueError(f"the batch of step {batch.step} has no samples to train on")
        # In a thread, because a large batch takes a while to divide and to copy, and producers must
        # go on.
        shared = await asyncio.to_thread(share_batch, batch, self._config)
        results: list[RankUpdate] = await self._call("update", UPDATE_TIMEOUT_S, shared)
        first = results[0]
        by_sample = {index: value for r in results for index, value in r.mismatches.items()}
        lengths = [batch.samples[index].trajectory.num_tokens for index in by_sample]
        self.device = first.usage.device
        # Ranks that share sequences have the same sums.
        sums = reduce_sums([r.sums for r in results[:: self._config.policy.sequence_parallel]])
        metrics = loss_metrics(sums, first.num_updates) | {
            "policy/grad_norm": first.grad_norm,
            "optim/learning_rate": first.learning_rate,
        }
        seconds = max(r.seconds for r in results)
        metrics |= usage_metrics([r.usage for r in results], lengths, seconds)
        algorithm = self._config.algorithm
        # Every sample that is in the loss was forwarded by one rank, in one of the updates.
        mismatches = tuple(
            by_sample[index] if is_in_loss(sample.trajectory, algorithm) else None
            for index, sample in enumerate(batch.samples)
        )
        if algorithm.mask_truncated:
            metrics["rollout/left_out_truncated"] = mismatches.count(None) / len(mismatches)
        return BatchUpdate(metrics, mismatches, first.skipped)

    async def reference_logprobs(self, request: ReferenceRequest) -> tuple[float, ...]:
        """Implements ReferenceScorer; requests that wait are forwarded together."""
        answer: asyncio.Future[tuple[float, ...]] = asyncio.get_running_loop().create_future()
        self._references.append((request, answer))
        # The first to wait starts a forward; whoever comes before it begins is forwarded with it.
        if len(self._references) == 1:
            forward = asyncio.create_task(self._score_references())
            self._forwards.add(forward)
            forward.add_done_callback(self._forwards.discard)
        return await answer

    async def _score_references(self) -> None:
        """Forward everything that waits, once the ranks are free for it."""
        # One at a time, because ranks answer calls in order: a second forward would only wait
        # there, and what arrives meanwhile can share it.
        async with self._one_forward:
            waiting, self._references = self._references, []
            try:
                requests = await asyncio.to_thread(ray.put, [request for request, _ in waiting])
                shares = await self._call("reference_logprobs", UPDATE_TIMEOUT_S, requests)
            except BaseException as error:
                # Each asker raises it; this task has nobody to raise it to.
                told = error
                if not isinstance(error, WorkerFailed):
                    told = RuntimeError(f"the learner cannot score: {error!r}")
                for _, answer in waiting:
                    if not answer.done():
                        answer.set_exception(told)
                if isinstance(error, Exception):
                    return
                raise
        for share in shares:
            for place, logprobs in share.items():
                if not waiting[place][1].done():
                    waiting[place][1].set_result(logprobs)

    def connect_engines(self, engines: Receivers, canary: Canary) -> None:
        """Name the engines that weights are sent to, and the response that proves them."""
        self._engines, self._canary = engines, canary

    async def send_weights(self, version: int) -> WeightProof:
        """Transfer every tensor to the engines; returns the proof of rank 0, the sender."""
        deadline_s, engines = self._config.sync.deadline_s, self._engines
        assert engines is not None, "connect engines before the first publish"
        receivers = list(engines.receivers)
        try:
            if receivers != self._connected:
                # A transfer is set up for its engines, all of them together.
                self._connected = []
                address = await self._free_address()
                await self._call("connect_engines", deadline_s, receivers, self._canary, address)
                self._connected = receivers
            # The sender's three calls to the engines each have the deadline to themselves.
            return (await self._call("send_weights", 4 * deadline_s, version))[0]
        except asyncio.CancelledError:
            if self._config.transport == "nccl":
                # Its ranks wait in a collective for an engine that is gone, and nothing ends that.
                self._lost = "the publish that it was in was broken off"
            raise

    async def save(self, directory: Path) -> None:
        """Write `state/` and `model/` into an existing directory that all ranks can reach."""
        await self._call("save", CHECKPOINT_TIMEOUT_S, directory.absolute())

    async def load(self, directory: Path) -> None:
        """Continue from what `save` wrote."""
        await self._call("load", CHECKPOINT_TIMEOUT_S, directory.absolute())

    async def close(self) -> None:
        """Stop every rank, whatever it is doing."""
        for watch in self._watches:
            watch.cancel()
        # A rank may hang in a collective and never answer a polite request to close.
        for actor in self.ranks:
            kill_actor(actor)
        # Where Ray's own kill works it is given the time: Ray tells of any other end as of a fault.
        ends = (end_processes(vitals, ENDS_S) for vitals in self._vitals.values())
        await asyncio.gather(*ends)

    async def _call(self, method: str, deadline_s: float, *arguments: Any) -> list[Any]:
        """Call every rank; a ValueError, which is about the input, comes back as it was."""
        work = call_all(
            self.ranks, method, *arguments, deadline_s=deadline_s, who=WHO, refusal=ValueError
        )
        return await self._or_lost(work)

    async def _free_address(self) -> tuple[str, int]:
        """An address of rank 0's node, and a port that is free on it."""
        who = f"{WHO} 0"
        work = call(self.ranks[0], "free_address", deadline_s=START_TIMEOUT_S, who=who)
        return await self._or_lost(work)

    async def _or_lost(self, work: Coroutine[Any, Any, T]) -> T:
        """What calls to ranks return; raises LearnerLost if one has died or missed the deadline."""
        try:
            if self._lost:
                raise LearnerLost(f"the learner: {self._lost}")
            return await work
        except TimeoutError as error:
            # Ranks answer calls in order: whatever is asked after this one would wait behind it.
            raise LearnerLost(str(error)) from error
        except ActorDied as error:
            # A rank may also have met an engine that died, and is well itself.
            if error.who.startswith(WHO):
                raise LearnerLost(str(error)) from error
            raise
        finally:
            work.close()
