"""What vLLM's own weight senders are given, with tensors on the meta device in place of a GPU's."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from vllm.distributed.weight_transfer import WeightTransferTrainerFactory, packed_tensor

from policy.weights import sender
from policy.weights.full_weights import FullWeights
from tests.fakes import config
from tests.qwen3_tiny import tiny_qwen3

COLOCATED = {"gpus": 1, "colocate": True}


@pytest.mark.parametrize(("vocabulary", "is_above_1_gib"), [(151_936, True), (1_000, False)])
def test_cuda_ipc_packs_every_tensor_of_a_wide_model(
    monkeypatch: pytest.MonkeyPatch, vocabulary: int, is_above_1_gib: bool
) -> None:
    """The embedding of Qwen3-8B is 1,244,659,712 bytes in bfloat16, a quarter of a GiB too many."""
    with torch.device("meta"):
        model = tiny_qwen3(vocabulary, hidden_size=4096).bfloat16()
    weights = FullWeights(model, torch.bfloat16, is_partitioned=False)
    started = {}
    monkeypatch.setattr(
        WeightTransferTrainerFactory,
        "trainer_init",
        lambda init_info, **_: started.update(info=init_info),
    )
    sender.WeightSender(config(resources=COLOCATED), 0, weights, None, [], ("", 0))
    capacity = started["info"].packed_buffer_size_bytes
    assert (capacity > 2**30) == is_above_1_gib

    # vLLM's own packer, with CUDA's names replaced by what a machine without it has.
    stream = SimpleNamespace(synchronize=lambda: None)
    cuda = SimpleNamespace(current_stream=lambda: stream)
    on_meta = SimpleNamespace(
        empty=lambda size, dtype, device: torch.empty(size, dtype=dtype, device="meta"),
        uint8=torch.uint8,
        cuda=cuda,
    )
    monkeypatch.setattr(packed_tensor, "torch", on_meta)
    monkeypatch.setattr(packed_tensor, "reduce_tensor", lambda tensor: (None, ()))
    chunks = packed_tensor.packed_ipc_producer(iter(weights), "", lambda item: item[1], capacity)
    assert [name for chunk in chunks for name in chunk.names] == [n for n, *_ in weights.metadata]
