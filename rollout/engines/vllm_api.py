"""What a rollout worker uses of vLLM, in one module that it imports once, in its own process.

The driver imports the worker's class to make an actor of it, and needs none of this.
"""

# What is imported here is for others to use.
# ruff: noqa: F401

from typing import get_args

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

from rollout.engines.forced_decoding import enable_forced_decoding, forced_sampling
from rollout.engines.scheduling import CANARY_PRIORITY, reserve_canary_place

LORA_RANKS: tuple[int, ...] = get_args(MaxLoRARanks)
"""The ranks that an engine can make room for, the smallest first."""
