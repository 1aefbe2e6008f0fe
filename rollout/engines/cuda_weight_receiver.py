"""vLLM's NCCL and CUDA IPC weight-transfer engines, with a receipt (weight_receiver.py)."""

from vllm.distributed.weight_transfer.ipc_engine import IPCWeightTransferEngine
from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine

from rollout.engines.weight_receiver import Receipt


class NcclReceiver(Receipt, NCCLWeightTransferEngine):
    pass


class IpcReceiver(Receipt, IPCWeightTransferEngine):
    pass
