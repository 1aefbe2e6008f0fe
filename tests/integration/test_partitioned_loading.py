"""Under ZeRO-3 the policy is divided over the ranks as it is loaded, and no rank has all of it."""

import ctypes
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from policy.learner import rank as rank_module
from policy.learner.logprobs import LogprobModel
from policy.models.loading import load_policy
from tests import minicpmv_tiny, qwen_vl_tiny
from tests.integration.ranks import InspectedRank, ask, close, open_ranks
from tests.integration.test_learner import make_config
from tests.qwen3_tiny import tiny_qwen3

SIZES = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "num_key_value_heads": 12,
    "head_dim": 64,
}
M_MMAP_THRESHOLD = -3
"""Of the C library's mallopt."""


def own_bytes() -> int:
    """Memory of this process without mapped files, from which weights are read."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


class MeasuredRank(InspectedRank):
    """A rank that knows how much memory the loading of its policy took."""

    def start(self, address: str, port: int) -> None:
        original = rank_module.load_policy
        rank_module.load_policy = self._measured
        try:
            super().start(address, port)
        finally:
            rank_module.load_policy = original

    def _measured(self, *arguments: object) -> object:
        # What is imported and compiled on the way must not count, so a tiny policy goes first.
        import deepspeed  # noqa: F401

        tiny = Path(self._source).parent / "tiny"
        load_policy(tiny, *arguments[1:])
        # So that the C library gives back at once what a tensor no longer takes.
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**20)
        before = own_bytes()
        peak, is_done = [before], threading.Event()

        def watch() -> None:
            while not is_done.is_set():
                peak.append(max(peak.pop(), own_bytes()))
                time.sleep(0.002)

        watcher = threading.Thread(target=watch)
        watcher.start()
        policy = load_policy(*arguments)
        is_done.set()
        watcher.join()
        self._held = {
            name: (parameter.numel(), parameter.ds_tensor.numel(), parameter.ds_numel)
            for name, parameter in policy.named_parameters()
        }
        self._peak = peak[0] - before
        return policy

    def buffers(self) -> dict[str, torch.Tensor]:
        """Clones of what the policy has beside its weights, such as rotary frequencies."""
        return {name: buffer.clone() for name, buffer in self._engine.module.named_buffers()}

    def loading(self) -> tuple[int, dict[str, tuple[int, int, int]]]:
        """Bytes at the peak, and of each parameter what is held: whole, in part, and its size."""
        return self._peak, self._held


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_no_rank_ever_holds_the_whole_policy(dtype: str, tmp_path: Path):
    directory = tmp_path / "model"
    policy = tiny_qwen3(1024, **SIZES)
    policy.to(getattr(torch, dtype)).save_pretrained(directory)
    tiny_qwen3(64).save_pretrained(tmp_path / "tiny")
    stored = load_file(directory / "model.safetensors")
    whole = sum(tensor.nbytes for tensor in stored.values())
    largest = max(tensor.nbytes for tensor in stored.values())
    ranks = open_ranks(make_config(ranks=2, zero_stage=3, dtype=dtype), directory, MeasuredRank)
    measured = ask(ranks, "loading")
    both = ask(ranks, "weights")
    close(ranks)
    for peak, held in measured:
        for name, (in_hand, part, size) in held.items():
            assert in_hand == 0, name
            assert part == -(-size // 2), name
        # Its half, and a few of the largest tensors, which are gathered one after the other.
        assert peak < whole / 2 + 6 * largest < 0.85 * whole
    for weights in both:
        assert weights.keys() == stored.keys()
        assert all(torch.equal(weights[name], tensor) for name, tensor in stored.items())


@pytest.mark.parametrize("family", ["text", "minicpmv", "qwen2_5_vl"])
def test_rotary_frequencies_keep_32_bits_beside_weights_of_16(family: str, tmp_path: Path):
    """They are computed while the policy is made, among weights that get their type from DeepSpeed.
    In bfloat16 a frequency is off by up to 1 in 256: by a whole turn after two thousand tokens."""
    directory = tmp_path / "model"
    directory.mkdir()
    if family == "text":
        tiny_qwen3(64, head_dim=64).save_pretrained(directory)
    elif family == "minicpmv":
        minicpmv_tiny.save_tiny(directory)
    else:
        qwen_vl_tiny.save_tiny(directory, family)
    tiny_qwen3(64).save_pretrained(tmp_path / "tiny")
    config = make_config(zero_stage=3, dtype="bfloat16")
    ranks = open_ranks(config, directory, MeasuredRank)
    (found,) = ask(ranks, "buffers")
    close(ranks)
    expected = dict(LogprobModel(load_policy(directory, config.policy), 16).named_buffers())
    assert any("inv_freq" in name for name in expected)
    assert found.keys() == expected.keys()
    for name, buffer in expected.items():
        assert buffer.dtype == found[name].dtype, name
        assert torch.equal(buffer, found[name]), name
