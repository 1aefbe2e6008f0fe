"""A plug-in that vLLM loads in every process, also in those that hold no model.

So it registers the engines of a publish by their names: receivers.py, which has them, takes longer
to load. And it lets these processes, which Ray does not start, say what they are at. vLLM finds
`register` through the `vllm.general_plugins` entry point.
"""

import functools

from vllm.distributed.weight_transfer import WeightTransferEngineFactory

from rl.system.worker_logs import answer_with_stacks


@functools.cache
def register() -> None:
    """Make the engines that keep a receipt known to vLLM, as `proven_` and the transport."""
    for transport, name in (("host", "Host"), ("nccl", "Nccl"), ("ipc", "Ipc")):
        WeightTransferEngineFactory.register_engine(
            f"proven_{transport}", "rollout.engines.receivers", f"{name}Receiver"
        )
    answer_with_stacks()
