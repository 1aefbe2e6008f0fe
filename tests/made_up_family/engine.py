"""The engine's side: vLLM would be given the pictures as they are."""

from __future__ import annotations

from rollout.engines.media import EngineFamily

ADAPTER = EngineFamily(
    serving_arguments={"hf_overrides": {"architectures": ["ColourModel"]}},
    training_arguments={"mm_processor_kwargs": {"do_resize": False}},
)
