"""One rollout worker: a vLLM `AsyncLLM` that samples groups and proves its weights.

Runs as an asynchronous Ray actor (pool.py makes it one), so many groups are in flight
in one engine at a time, and each goes back as soon as its last trajectory ends.
"""

import asyncio
import json
import os
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
from pydantic import ValidationError

from rl.config.data import SourceConfig
from rl.config.policy import THINK_TAGS, LoraConfig, ThinkTags
from rl.data.media.names import MediaError, Medium, StillImage, Video
from rl.data.media.store import MediaStore
from rl.loop.interfaces import GenerationFailed, PromptTooLong, WorkerFailed
from rl.loop.stages import (
    Canary,
    ChoiceTokens,
    NextTokenRequest,
    ReferenceRequest,
    RolloutGroup,
    RolloutRequest,
    Trajectory,
    WeightProof,
    split_response,
)
from rl.system.resident import resident_bytes
from rl.system.vitals import Vitals, Watched
from rl.system.worker_logs import LOG_VARIABLE, engine_error
from rollout.chat import ChatTemplate
from rollout.engines.media import engine_family
from rollout.engines.statistics import EngineStatistics

REFERENCE_PRIORITY = -1
"""Before groups, so that a reference is scored before the prefix cache loses its context."""

WATCH_S = 0.5
"""How often a worker looks whether vLLM's own processes live."""
LISTEN_S = 2.0
"""How often a worker asks them for a sign of life."""

# The same in every version, so that requests in flight go on with a new adapter.
ADAPTER_NAME, ADAPTER_ID = "policy", 1

NEVER = -100.0
"""The lowest bias that vLLM takes; e^-100 is no chance at all in float32."""


@dataclass(frozen=True)
class WorkerSettings:
    """Everything a worker needs to start its engine."""

    model: str
    """Its directory on the driver's node."""
    dtype: str
    max_model_length: int | None
    """Tokens of a prompt and its response, at most; None takes what the model was trained for."""
    tensor_parallel: int
    transport: str | None
    """How it receives the learner's weights; None for a model that no learner trains."""
    thinking: Mapping[str, bool | ChoiceTokens]
    """Whether each mode reasons, which decides how its text is split; or by which tokens a response
    of a mode that chooses says so."""
    tags: ThinkTags = THINK_TAGS
    """Around the reasoning."""
    comes_back: bool = False
    """Whether Ray starts it again when its engine dies. Never for a policy: it would come back
    with its first weights."""
    scores_references: bool = False
    """Whether it is asked how probable given tokens are (rollout/engines/forced_decoding.py)."""
    adapter: LoraConfig | None = None
    """What the learner trains in place of the weights, where it sends an adapter alone."""
    seed: int = 0
    """Of requests without a seed of their own; the pool gives each engine another one."""
    keep_kv_cache: bool = True
    """Whether requests in flight keep their keys and values over a publish."""
    sleeps: bool = False
    """Whether it gives its GPU's memory to the learner while that updates."""
    model_on_node: Mapping[str, str] = field(default_factory=dict)
    """Where the model lies on other nodes, by their id."""
    engine: Mapping[str, Any] = field(default_factory=dict)
    """vLLM engine arguments, passed through."""
    data: SourceConfig = field(default_factory=SourceConfig)
    """Where the media of prompts are read from."""

    def on_this_node(self) -> "WorkerSettings":
        """The same, with the model's directory on the node that this is called on."""
        if not self.model_on_node:
            return self
        node = ray.get_runtime_context().get_node_id()
        return replace(self, model=self.model_on_node.get(node, self.model))


class RolloutWorker(Watched):
    def __init__(self, name: str, settings: WorkerSettings, devices: str | None = None) -> None:
        """devices: CUDA device ids to see, for an engine on the GPUs that learner ranks hold."""
        self.name = name
        self._settings = settings
        self._devices = devices
        self._engine: Any = None
        self._starting = asyncio.Lock()
        self._listener: asyncio.Task[None] | None = None
        self._heard: float | None = None
        """When vLLM's processes last answered; None before they are up."""
        self._is_receiving = False
        """Whether a weight update has begun that has not been finished."""
        self._version = 0
        self._num_canaries = 0
        self._away: set[str] = set()
        """What of the GPU's memory vLLM has given up, in its own words; empty while it is awake."""
        self._adapter: Any = None
        """vLLM's name for the policy's adapter, which every request carries once there is one."""

    async def start(self) -> None:
        """Load the engine, once; raises WorkerFailed if vLLM cannot load it."""
        # Many requests may find the engine gone at the same time, and it must be loaded once.
        async with self._starting:
            if self._engine is None:
                try:
                    await self._load()
                except Exception as error:
                    raise self._died(error) from error
                self._heard = time.monotonic()
                self._listener = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        """Note when vLLM's processes answer, which they do between two steps, also while paused."""
        # Once they have died there is nothing to hear, which `watch` and every request tell.
        with suppress(self._vllm.EngineDeadError):
            while not self._engine.errored:
                await self._engine.is_paused()
                self._heard = time.monotonic()
                await asyncio.sleep(LISTEN_S)

    def vitals(self) -> Vitals:
        # In a thread beside the one that works, so what is read may change at any moment.
        heard = self._heard
        silent_s = 0.0 if heard is None else time.monotonic() - heard
        return replace(super().vitals(), silent_s=silent_s, is_receiving=self._is_receiving)

    async def _load(self) -> None:
        if self._devices is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = self._devices
        # Only now: vLLM reads that variable when it loads, and takes ten seconds to do so, which
        # the driver, for whom this class is only the description of an actor, need not wait for.
        from rollout.engines import vllm_api

        self._vllm = vllm_api
        settings = self._settings.on_this_node()
        arguments: dict[str, Any] = {
            "model": settings.model,
            "dtype": settings.dtype,
            "max_model_len": settings.max_model_length,
            "tensor_parallel_size": settings.tensor_parallel,
            "seed": settings.seed,
            # The learner divides its logits by the temperature, so the sampler must report
            # log-probabilities after it.
            "logprobs_mode": "processed_logprobs",
            "worker_extension_cls": "rollout.engines.receivers.WorkerExtension",
            "use_tqdm_on_load": False,
            "scheduling_policy": "priority",
        }
        if os.environ.get("TORCHDYNAMO_DISABLE") == "1":
            # rl/system/engine_environment.py has turned off what vLLM would compile with, and an
            # engine that is to compile then refuses to start.
            arguments["enforce_eager"] = True
        if settings.tensor_parallel > 1:
            # Inside a placement group vLLM would start Ray actors on the GPUs that this one holds.
            arguments["distributed_executor_backend"] = "mp"
        if settings.transport is not None:
            # Our own backends, which digest what arrives (receivers.py).
            backend = f"proven_{settings.transport}"
            arguments["weight_transfer_config"] = vllm_api.WeightTransferConfig(backend=backend)
        if settings.adapter is not None:
            rank = next(rank for rank in vllm_api.LORA_RANKS if rank >= settings.adapter.rank)
            arguments |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": rank}
        if settings.sleeps:
            # Weights and KV cache then lie in memory that vLLM can give back and map again at the
            # same addresses, which CUDA graphs hold.
            arguments["enable_sleep_mode"] = True
        self._store = MediaStore(settings.data)
        self._family = family = engine_family(Path(settings.model))
        arguments |= {**family.serving_arguments, **family.training_arguments, **settings.engine}
        if settings.transport is not None:
            # As the learner computes them (policy/learner/logprobs.py): logits that are rounded to
            # bfloat16 on one side only would be most of what engine and learner differ by.
            given = arguments.get("hf_overrides", {})
            if isinstance(given, Mapping):
                arguments["hf_overrides"] = {"head_dtype": "float32", **given}
        # By this context vLLM looks up how many sequences and tokens a step may have on a device.
        # Without one it takes its smallest limits, such as 128 sequences, whatever the GPU.
        context = vllm_api.UsageContext.LLM_CLASS
        config = vllm_api.AsyncEngineArgs(**arguments).create_engine_config(context)
        if settings.scores_references:
            vllm_api.enable_forced_decoding(config)
        if settings.transport is not None:
            vllm_api.use_own_scheduler(config)
        self._engine = vllm_api.AsyncLLM.from_vllm_config(
            config, stat_loggers=[vllm_api.TallyLogger], disable_log_stats=True
        )
        self._tally = vllm_api.tally_of(self._engine)
        if settings.scores_references:
            await self._engine.collective_rpc("force_tokens")
        if settings.adapter is not None:
            await self._engine.collective_rpc("digest_adapters")
        self._chat = ChatTemplate(settings.model)
        self._never_sampled = dict.fromkeys(self._chat.unsampled, NEVER)

    async def generate(self, request: RolloutRequest) -> RolloutGroup:
        """Return the group; raises GenerationFailed if the request, not the engine, is at fault."""
        # A publish may come while this request is in flight; the loop refuses what is too stale.
        first_version = self._version
        thinking = self._settings.thinking[request.mode]
        # Which of them are to begin with which tokens: with none, unless both kinds are forced.
        parts: list[tuple[range, tuple[int, ...]]] = [(range(request.n), ())]
        if request.is_pair:
            assert isinstance(thinking, ChoiceTokens), f"mode {request.mode} leaves no choice"
            half = request.n // 2
            parts = [(range(half), thinking.long), (range(half, request.n), thinking.short)]
        with self._failures():
            sampled = await asyncio.gather(
                *(self._sampled(request, *part, first_version) for part in parts)
            )
        versions, trajectories = (first_version, self._version), []
        for (places, forced), (output, _) in zip(parts, sampled, strict=True):
            if len(output.outputs) != len(places) or not all(c.token_ids for c in output.outputs):
                raise GenerationFailed("empty", "the engine returned no tokens for a trajectory")
            # A group with a part missing has no fair baseline, so the whole group fails.
            if any(c.finish_reason not in ("stop", "length") for c in output.outputs):
                raise GenerationFailed("aborted", "the engine gave a trajectory up")
            trajectories += [
                self._trajectory(thinking, output.prompt_token_ids, len(forced), c, versions)
                for c in output.outputs
            ]
        _, shown = sampled[0]
        return RolloutGroup(
            request,
            tuple(trajectories),
            media_digests=tuple(medium.digest for medium in shown),
        )

    async def _sampled(
        self, request: RolloutRequest, places: range, forced: tuple[int, ...], version: int
    ) -> tuple[Any, list[StillImage | Video]]:
        """The engine's output for these of a group's responses, all of which begin as `forced`
        says, and the prompt's media as they were shown to it."""
        sampling = self._vllm.SamplingParams(
            n=len(places),
            # What is forced counts as sampled, so that both kinds may write as much.
            max_tokens=request.max_tokens - len(forced),
            temperature=request.temperature,
            top_p=request.top_p,
            # vLLM gives the n responses this seed and those that follow it.
            seed=None if request.seed is None else request.seed + places.start,
            logprobs=0,
            flat_logprobs=True,
            detokenize=False,
            output_kind=self._vllm.RequestOutputKind.FINAL_ONLY,
            logit_bias=self._never_sampled or None,
            # vLLM itself stops at those of generation_config.json alone, where there is one.
            stop_token_ids=sorted(self._chat.end_tokens),
        )
        # The two kinds of a pair differ in what is forced first.
        name = f"{request.group_id}/{forced[0]}" if forced else request.group_id
        asked = (*request.prompt_token_ids, *forced)
        return await self._final_output(asked, request.prompt.media, sampling, name, version)

    async def reference_logprobs(self, request: ReferenceRequest) -> tuple[float, ...]:
        """Log-probability of each reference token after the context; raises GenerationFailed."""
        with self._failures():
            sampling = self._vllm.forced_sampling(
                self._engine.vllm_config, request.reference_token_ids, request.temperature
            )
            context, media = request.context_token_ids, request.prompt.media
            version = self._version if request.version is None else request.version
            output, _ = await self._final_output(
                context, media, sampling, request.id, version, REFERENCE_PRIORITY
            )
        (completion,) = output.outputs
        if tuple(completion.token_ids) != request.reference_token_ids:
            raise GenerationFailed("not_forced", "the engine emitted tokens that it was not given")
        return tuple(completion.logprobs.logprobs)

    async def next_token_logprobs(self, request: NextTokenRequest) -> tuple[float, ...]:
        """Log-probability of each asked token as the next one, in their order, at temperature 1.

        The softmax goes over the whole vocabulary: no token is biased, and none is cut off. Raises
        GenerationFailed.
        """
        # Loads an engine that comes back: Ray repeats the request, and not the call of `start`.
        await self.start()
        with self._failures():
            sampling = self._vllm.SamplingParams(
                max_tokens=1,
                temperature=1.0,
                logprob_token_ids=list(request.token_ids),
                detokenize=False,
                output_kind=self._vllm.RequestOutputKind.FINAL_ONLY,
            )
            output, _ = await self._final_output(
                request.prompt_token_ids, request.prompt.media, sampling, request.id, self._version
            )
        (completion,) = output.outputs
        if not completion.token_ids:
            raise GenerationFailed("empty", "the engine returned no token")
        (position,) = completion.logprobs
        return tuple(position[token].logprob for token in request.token_ids)

    @contextmanager
    def _deaths(self) -> Iterator[None]:
        """Raises WorkerFailed if vLLM's processes have died."""
        try:
            yield
        except self._vllm.EngineDeadError as error:
            if self._settings.comes_back:
                # No engine comes up again in this process; Ray starts another and asks it again.
                os._exit(1)
            raise self._died(error) from error

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """Raises GenerationFailed if the request, and not the engine, is at fault."""
        try:
            with self._deaths():
                yield
        except self._vllm.EngineGenerateError as error:
            raise GenerationFailed("engine_error", error.__cause__ or error) from error
        except MediaError as error:
            raise GenerationFailed("bad_media", error) from error
        except (ValueError, self._vllm.VLLMClientError) as error:
            is_long = any(words in str(error) for words in self._vllm.TOO_LONG)
            failed = PromptTooLong if is_long else GenerationFailed
            raise failed("request_refused", error) from error

    def _died(self, error: Exception) -> WorkerFailed:
        """What ends the run: where the engine's output is and, in the last line, vLLM's reason."""
        # Of another process of vLLM, its log alone says why that one died.
        reasons = [engine_error(), *reversed(str(error).splitlines()), type(error).__name__]
        if isinstance(error, ValidationError):
            # Its text goes on with the input and an address.
            reasons = ["; ".join(finding["msg"] for finding in error.errors())]
        traceback.print_exception(error)
        log = os.environ.get(LOG_VARIABLE)
        where = f"; all that it printed is in {log}" if log else ""
        reason = next(reason for reason in reasons if reason and reason.strip())
        return WorkerFailed(f"{self.name}: its vLLM engine died{where}; vLLM says:\n{reason}")

    async def _final_output(
        self,
        token_ids: Sequence[int],
        media: Sequence[Medium],
        sampling: Any,
        request_id: str,
        version: int,
        priority: int = 0,
    ) -> tuple[Any, list[StillImage | Video]]:
        """The engine's output, and the prompt's media as they were shown to it.

        version: the policy version whose cached keys and values the request may take up.
        """
        shown: list[StillImage | Video] = []
        if media:
            # In a thread, because reading and decoding must not hold up the requests in flight.
            shown = await asyncio.to_thread(lambda: [self._store.read(medium) for medium in media])
        prompt = {
            "prompt_token_ids": list(token_ids),
            **self._family.inputs(shown),
            # vLLM shares keys and values among prompts of equal tokens and equal salt. After a
            # publish the old ones are still there, and no new request may begin with them.
            "cache_salt": f"version {version}",
        }
        stream = self._engine.generate(
            prompt, sampling, request_id, lora_request=self._adapter, priority=priority
        )
        outputs = [output async for output in stream]
        return outputs[-1], shown

    def _trajectory(
        self,
        thinking: bool | ChoiceTokens,
        prompt_token_ids: Sequence[int],
        num_forced: int,
        completion: Any,
        versions: tuple[int, int],
    ) -> Trajectory:
        """prompt_token_ids: with every token of the prompt's media, and those that were forced."""
        ids = [np.asarray(part, np.int32) for part in (prompt_token_ids, completion.token_ids)]
        token_ids = np.concatenate(ids)
        loss_mask = np.arange(len(token_ids)) >= len(prompt_token_ids) - num_forced
        logprobs = np.zeros(len(token_ids), dtype=np.float32)
        logprobs[len(prompt_token_ids) :] = completion.logprobs.logprobs
        choice, response = None, token_ids[loss_mask].tolist()
        if isinstance(thinking, ChoiceTokens):
            choice = thinking.read(response, is_forced=num_forced > 0)
            thinking, response = choice.thinking, response[choice.num_tokens :]
        # Decoded here and not by vLLM, which would drop the special tokens that the format reward
        # looks for.
        text = self._chat.text(response)
        reasoning, answer = split_response(text, thinking, self._settings.tags)
        is_ended = completion.finish_reason == "stop"
        return Trajectory(
            token_ids=token_ids,
            loss_mask=loss_mask,
            rollout_logprobs=logprobs,
            versions=versions,
            finish_reason=completion.finish_reason,
            text=text,
            reasoning=reasoning,
            answer=answer,
            end_token=int(completion.token_ids[-1]) if is_ended else None,
            choice=choice,
        )

    # A publish: pause, vLLM's weight-transfer calls (driven by the learner), resume, prove. Before
    # it, an engine on the learner's GPU sleeps through the update.

    async def sleep(self) -> None:
        """Freeze requests in flight and give up the GPU's memory; `pause` and `resume` end it."""
        # A full publish brings every weight again, so they are dropped. Beside an adapter the base
        # never comes again, and is kept in the memory of the host.
        level = 2 if self._settings.adapter is None else 1
        with self._deaths():
            await self._engine.sleep(level=level, mode="keep")
            self._tally.pause()
        self._away = {"weights", "kv_cache"}

    async def pause(self) -> None:
        """Freeze requests in flight; they go on over the keys and values they have, if kept."""
        if "weights" in self._away:
            # Room for the weights that now come, and none yet for keys and values: the learner
            # needs it to gather and send. Until both are back vLLM schedules nothing.
            with self._deaths():
                await self._engine.wake_up(["weights"])
            self._away.discard("weights")
        # Also where a publish begins anew because another engine was lost in it.
        if self._away:
            return
        is_kept = self._settings.keep_kv_cache
        with self._deaths():
            await self._engine.pause_generation(mode="keep", clear_cache=not is_kept)
            self._tally.pause()
            if is_kept:
                # Pictures that older weights saw are found again by their content alone, for which
                # there is no salt.
                await self._engine.reset_encoder_cache()

    async def resume(self, version: int) -> None:
        # Before vLLM goes on, which it does by itself when all of its memory is back.
        self._version = version
        with self._deaths():
            if self._away:
                await self._engine.wake_up(sorted(self._away))
                self._away.clear()
            await self._engine.resume_generation()

    async def statistics(self) -> EngineStatistics:
        """What the engine did since it was last asked, and the memory of all its processes."""
        return self._tally.take(resident_bytes(with_children=True))

    async def watch(self) -> None:
        """Raise WorkerFailed once vLLM's processes have died; does not return before."""
        # The death of this process itself is what Ray tells the caller.
        while not self._engine.errored:
            await asyncio.sleep(WATCH_S)
        raise self._died(RuntimeError("a process of vLLM ended"))

    async def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        with self._deaths():
            await self._engine.init_weight_transfer_engine(
                self._vllm.WeightTransferInitRequest(init_info)
            )

    async def start_weight_update(self) -> None:
        with self._deaths():
            if self._is_receiving:
                # The sender, or another engine, was lost in the middle of the update before.
                await self._engine.collective_rpc("abandon_weight_update")
            self._is_receiving = True
            await self._engine.start_weight_update()

    async def update_weights(self, update_info: dict[str, Any]) -> None:
        with self._deaths():
            await self._engine.update_weights(self._vllm.WeightTransferUpdateRequest(update_info))

    async def finish_weight_update(self) -> None:
        with self._deaths():
            await self._engine.finish_weight_update()
        self._is_receiving = False

    async def load_adapter(self, matrices: bytes) -> None:
        """Put the adapter of a safetensors file in the old one's place, also in paused requests."""
        adapter = self._settings.adapter
        assert adapter is not None
        settings = {"r": adapter.rank, "lora_alpha": adapter.alpha, "target_modules": []}
        # A directory as PEFT writes it is what vLLM reads, in every process of the engine.
        with tempfile.TemporaryDirectory(prefix="hybrid_rl_adapter_") as directory:
            (Path(directory) / "adapter_config.json").write_text(json.dumps(settings))
            (Path(directory) / "adapter_model.safetensors").write_bytes(matrices)
            await self._engine.add_lora(
                self._vllm.LoRARequest(ADAPTER_NAME, ADAPTER_ID, directory, load_inplace=True)
            )
        # Without load_inplace, which would read the file again for every request and step.
        self._adapter = self._vllm.LoRARequest(ADAPTER_NAME, ADAPTER_ID, ADAPTER_NAME)

    async def prove(self, canary: Canary) -> list[WeightProof]:
        """What each vLLM process received, and the canary's log-probabilities from the engine."""
        started = time.monotonic()
        request, response = canary.request, canary.trajectory.response_token_ids.tolist()
        with self._deaths():
            receipts, logprobs = await asyncio.gather(
                self._engine.collective_rpc("weight_receipt"),
                self._score(request.prompt_token_ids, response, request.prompt.media),
            )
        # Each process of a tensor-parallel engine holds a share of a tensor, and what changed of it
        # may lie in the share of another one.
        unapplied = set.intersection(*(set(receipt["unapplied"]) for receipt in receipts))
        seconds = {"prove": time.monotonic() - started}
        return [
            WeightProof(
                version=self._version,
                digests=receipt["digests"],
                canary_logprobs=logprobs,
                unapplied=tuple(name for name in receipt["unapplied"] if name in unapplied),
                unexplained=tuple(receipt["unexplained"]),
                seconds=seconds,
            )
            for receipt in receipts
        ]

    async def _score(
        self, context: Sequence[int], scored: Sequence[int], media: Sequence[Medium]
    ) -> tuple[float, ...]:
        """Log-probabilities of the `scored` tokens after a context, at temperature 1."""
        self._num_canaries += 1
        # As a prompt and not by forcing: it must go through the plain forward that every engine
        # has.
        sampling = self._vllm.SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False)
        request_id = f"canary/{self._num_canaries}"
        output, _ = await self._final_output(
            (*context, *scored),
            media,
            sampling,
            request_id,
            self._version,
            self._vllm.CANARY_PRIORITY,
        )
        found = zip(scored, output.prompt_logprobs[-len(scored) :], strict=True)
        return tuple(position[token].logprob for token, position in found)

    async def close(self) -> None:
        """Stop the engine's processes."""
        if self._listener is not None:
            self._listener.cancel()
        # None where the start of another part failed before this engine had loaded.
        if self._engine is not None:
            self._engine.shutdown()
