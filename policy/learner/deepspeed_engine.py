"""Opens the DeepSpeed engine of a rank: its configuration, optimizer and process group."""

import os
import socket
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import timedelta
from typing import Any

import ray
import torch
from omegaconf import OmegaConf
from torch.distributed import TCPStore

from policy.learner.logprobs import ChunkedHead, LogprobModel
from policy.models.kernels import preferred_attention
from rl.config.policy import PolicyConfig
from rl.config.run import Config

LOOPBACK = "127.0.0.1"
COLLECTIVE_TIMEOUT = timedelta(minutes=30)
"""A rank that waits this long for another one fails, so that no run hangs for ever."""
_for_life = ExitStack()
"""What this process enters and never leaves."""


def free_address() -> tuple[str, int]:
    """Return an address of this node and a port that is free on it."""
    # The port is free now and may be taken before rank 0 binds it; that is rare, and then the start
    # fails with the address in its error.
    with socket.socket() as probe:
        probe.bind(("", 0))
        return ray.util.get_node_ip_address(), probe.getsockname()[1]


def join_ranks(config: Config, rank: int, address: str, port: int) -> None:
    """Set up this process, torch.distributed and DeepSpeed; returns when every rank has come.

    address, port: where rank 0 gathers all ranks.
    """
    use_cuda = config.resources.gpus > 0
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(config.policy.ranks),
        # Ray shows each rank one device.
        "LOCAL_RANK": "0",
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
        "DS_ACCELERATOR": "cuda" if use_cuda else "cpu",
    }
    if use_cuda:
        torch.cuda.set_device(0)
    else:
        # Imported here: it takes seconds and reads DS_ACCELERATOR at once.
        import deepspeed

        torch.set_num_threads(config.rank_threads)
        # DeepSpeed's collectives in shared memory take most of a minute and a C++ compiler to make,
        # for what gloo does as well.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        if address == LOOPBACK:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    # The address is bound here, because torch alone would listen on all that the machine has.
    ranks, is_first = config.policy.ranks, rank == 0
    listener = socket.create_server((address, port), backlog=ranks).detach() if is_first else None
    store = TCPStore(address, port, ranks, is_first, COLLECTIVE_TIMEOUT, master_listen_fd=listener)
    backend = "nccl" if use_cuda else "gloo"
    torch.distributed.init_process_group(
        backend, store=store, rank=rank, world_size=ranks, timeout=COLLECTIVE_TIMEOUT
    )
    _for_life.enter_context(preferred_attention(config.policy.attention))
    if use_cuda and config.policy.offloads_optimizer:
        hosts: list[str] = [""] * config.policy.ranks
        torch.distributed.all_gather_object(hosts, socket.gethostname())
        torch.set_num_threads(optimizer_threads(config, hosts, rank))


def optimizer_threads(config: Config, hosts: Sequence[str], rank: int) -> int:
    """CPU threads of a rank whose optimizer steps on the CPU.

    hosts: the node of each rank. Ray's count of a rank's cores is of what else it does there, and a
    step over billions of parameters wants all that its node has: its engines use few.
    """
    shared = (os.cpu_count() or 1) // hosts.count(hosts[rank])
    return max(shared, config.rank_threads)


def deepspeed_config(config: PolicyConfig) -> dict[str, Any]:
    """Return DeepSpeed's configuration, with `policy.deepspeed` merged over ours."""
    if "stage" in config.deepspeed.get("zero_optimization", {}):
        raise ValueError(
            "policy.deepspeed.zero_optimization.stage is set; set policy.zero_stage instead, which "
            "the learner goes by too"
        )
    stage = config.effective_zero_stage
    ours: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        # The rank marks the last micro-batch itself, as their number differs from step to step.
        "gradient_accumulation_steps": 1,
        "zero_optimization": {"stage": stage},
        # AdamW of torch itself: DeepSpeed's own is a C++ extension that has to be compiled.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31,
    }
    if stage > 0:
        # At stage 0 the rank clips, because DeepSpeed would not report the norm.
        ours["gradient_clipping"] = config.optimizer.max_grad_norm
    if config.dtype == "bfloat16":
        ours["bf16"] = {"enabled": True}
        # Micro-batch gradients differ by orders of magnitude; their sum in bfloat16 would lose the
        # small ones.
        ours["data_types"] = {"grad_accum_dtype": "fp32"}
    return OmegaConf.to_container(OmegaConf.merge(ours, config.deepspeed))


def open_engine(model: LogprobModel, config: PolicyConfig, use_cuda: bool) -> Any:
    """Return DeepSpeed's engine over the model's trainable parameters."""
    # Imported here for the same reason as above.
    import deepspeed

    if config.effective_zero_stage == 3:
        # Gathered once per forward, whatever the number of a rank's chunks (ChunkedHead).
        deepspeed.utils.set_z3_leaf_modules(model, [ChunkedHead])
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        trainable,
        lr=config.optimizer.learning_rate,
        betas=config.optimizer.betas,
        weight_decay=config.optimizer.weight_decay,
        fused=use_cuda,
    )
    engine, *_ = deepspeed.initialize(
        model=model,
        model_parameters=trainable,
        optimizer=optimizer,
        config=deepspeed_config(config),
        dist_init_required=False,
    )
    return engine
