"""What a rollout worker uses of vLLM, in one module that it imports once, in its own process.

The driver imports the worker's class to make an actor of it, and needs none of this.
"""

# What is imported here is for others to use.
# ruff: noqa: F401

from typing import Any, get_args

from vllm import AsyncEngineArgs, SamplingParams
from vllm.config import WeightTransferConfig
from vllm.config.lora import MaxLoRARanks
from vllm.distributed.weight_transfer.base import (
    WeightTransferInitRequest,
    WeightTransferUpdateRequest,
)
from vllm.exceptions import VLLMClientError
from vllm.lora.request import LoRARequest
from vllm.sampling_params import RequestOutputKind
from vllm.usage.usage_lib import UsageContext
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError
from vllm.v1.metrics.loggers import PrometheusStatLogger

from rollout.engines.forced_decoding import enable_forced_decoding, forced_sampling
from rollout.engines.scheduling import CANARY_PRIORITY, use_own_scheduler
from rollout.engines.statistics import EngineTally

LORA_RANKS: tuple[int, ...] = get_args(MaxLoRARanks)
"""The ranks that an engine can make room for, the smallest first."""
TOO_LONG = ("maximum context length is", "longer than the maximum model length")
"""What vLLM says of a prompt that it refuses for its length, in errors of no class of their own:
before and after its media have all their tokens."""


class TallyLogger(PrometheusStatLogger):
    """Adds up what vLLM reports of each iteration.

    It stands in the place of vLLM's logger for Prometheus, which is otherwise always there once
    anybody asks for statistics: dozens of counters a token, for a server that nobody starts.
    """

    def __init__(self, vllm_config: Any, engine_indexes: list[int] | None = None) -> None:
        self.tally = EngineTally()

    def record(
        self,
        scheduler_stats: Any,
        iteration_stats: Any,
        mm_cache_stats: Any = None,
        engine_idx: int = 0,
    ) -> None:
        self.tally.add(scheduler_stats, iteration_stats)

    # The other messages are for Prometheus alone.

    def log_engine_initialized(self) -> None:
        pass

    def record_admission_rejection(self, reason: str) -> None:
        pass

    def record_sleep_state(self, sleep: int = 0, level: int = 0) -> None:
        pass


def tally_of(engine: AsyncLLM) -> EngineTally:
    """The tally of an engine that was given TallyLogger."""
    assert engine.logger_manager is not None
    loggers = engine.logger_manager.stat_loggers
    return next(logger.tally for logger in loggers if isinstance(logger, TallyLogger))
