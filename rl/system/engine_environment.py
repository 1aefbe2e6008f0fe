"""The process environment that a vLLM engine in a Ray actor needs, on CPU and on GPU."""

import os


def engine_environment(cpus: float, on_gpu: bool, cache_gib: int = 1) -> dict[str, str]:
    """Environment of an actor that holds an engine, and of the processes vLLM starts from it.

    cpus: cores the actor may use, at least one. cache_gib: room for keys and values on CPU, where
    VLLM_CPU_KVCACHE_SPACE says nothing.
    """
    environment = {
        "TOKENIZERS_PARALLELISM": "false",
        "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "ERROR"),
        "PYTHONWARNINGS": "ignore",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        "OMP_NUM_THREADS": str(max(1, int(cpus))),
    }
    if on_gpu:
        return environment
    # Left to itself vLLM binds every engine of a machine to the same first core.
    return environment | {
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": os.environ.get("VLLM_CPU_KVCACHE_SPACE", str(cache_gib)),
        # Even an eager engine compiles its sampler, in C++, which a machine need not be able to.
        "TORCHDYNAMO_DISABLE": os.environ.get("TORCHDYNAMO_DISABLE", "1"),
        # Each engine's processes would warn that triton is not there, which no CPU can use.
        "TORCH_LOGS": os.environ.get("TORCH_LOGS", "-torch._library.triton"),
    }
