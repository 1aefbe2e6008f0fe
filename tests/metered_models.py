"""What the meter says of published models, kept in a file, so that tests of choices are quick.

python -m tests.metered_models        # meters all that the file knows again, in a minute
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from pathlib import Path

from rl.config.run import Config
from rl.system.memory_estimate import MemoryPlan, ModelSize, UpdatePeak, offloads

FILE = Path(__file__).parent / "data" / "metered_models.json"


def key_of(config: Config) -> str:
    """All that the meter's answer depends on, for models of one family."""
    policy = config.policy
    gradients_wait = policy.effective_zero_stage == 1 and not offloads(policy, "offload_optimizer")
    parts = {
        "model": policy.model.rpartition("Qwen3-")[2],
        "lora": 0 if policy.lora is None else policy.lora.rank,
        "logits": policy.logprob_chunk_tokens,
        "row": config.rank_row_tokens,
        "gradients_wait": gradients_wait,
    }
    return json.dumps(parts)


def metered_plan(config: Config) -> MemoryPlan | None:
    """As rl.launch.auto_scale.plan_memory, by the figures in the file."""
    stored = json.loads(FILE.read_text())[key_of(config)]
    peaks = {int(tokens): UpdatePeak(*peak) for tokens, peak in stored.pop("peaks").items()}
    return MemoryPlan(config, ModelSize(**stored, peaks=peaks))


def meter_again(config: Config) -> MemoryPlan:
    """As `metered_plan`, and keeps the figures in the file."""
    # Imported on use: who asks for kept figures need not load torch.
    from policy.learner.memory_meter import meter_model
    from tests.published_models import write_qwen3

    known = json.loads(FILE.read_text()) if FILE.exists() else {}
    if (key := key_of(config)) not in known:
        with tempfile.TemporaryDirectory() as directory:
            size = meter_model(write_qwen3(Path(directory), json.loads(key)["model"]), config)
        known[key] = dataclasses.asdict(size)
        lines = ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in known.items())
        FILE.write_text("{\n" + lines + "\n}\n")
    plan = metered_plan(config)
    assert plan is not None
    return plan


if __name__ == "__main__":
    from rl.config.keys import RecipeError
    from rl.launch.auto_scale import choose_scale
    from tests.unit.rl.launch.test_auto_scale import CARDS, GIB, HYBRID, SCALES, TOO_LARGE

    FILE.unlink(missing_ok=True)
    for gpus, scale in SCALES.items():
        for card in CARDS.values():
            choose_scale([HYBRID], scale, gpus, card * GIB, meter_again)
    for scale, gpus, card, model in TOO_LARGE:
        try:
            choose_scale([HYBRID, f"policy.model={model}"], scale, gpus, card * GIB, meter_again)
        except RecipeError as error:
            print(error)
