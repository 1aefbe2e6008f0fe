"""Which weights are trained: parts of the policy, or adapters on its language model."""

from __future__ import annotations

from collections.abc import Sequence

from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from policy.models.family import model_family
from rl.config.policy import Part, PolicyConfig


def choose_trained(model: PreTrainedModel, config: PolicyConfig) -> PreTrainedModel | PeftModel:
    """Leave only `policy.train` trainable, with adapters on the language model under LoRA.

    Raises ValueError for a part that the model does not have.
    """
    parts = model_family(model.config.model_type).parts(model)
    trained: Sequence[Part] = config.train or (["llm"] if config.lora else list(parts))
    if missing := sorted(set(trained) - set(parts)):
        raise ValueError(
            f"policy.train names {', '.join(missing)}, and {model.config.model_type} has only "
            f"{', '.join(parts)}; leave policy.train out to train all of it"
        )
    if config.lora is not None and "llm" not in trained:
        raise ValueError(
            f"policy.lora adapts the language model, which policy.train={list(trained)} leaves as "
            "it is; add llm to policy.train or leave policy.lora out"
        )
    # The adapter first: PEFT freezes the whole model when it adds one.
    policy: PreTrainedModel | PeftModel = model
    if config.lora is not None:
        adapter = PeftLoraConfig(
            r=config.lora.rank,
            lora_alpha=config.lora.alpha,
            target_modules=_targets(model, parts["llm"], config.lora.targets),
        )
        # Adapter weights in the model's own type: DeepSpeed keeps the float32 copies.
        policy = get_peft_model(model, adapter, autocast_adapter_dtype=False)
    # PEFT has frozen all but its adapters; without it everything is trainable until here.
    for name, modules in parts.items():
        if config.lora is None or name != "llm":
            for module in modules:
                module.requires_grad_(name in trained)
    return policy


def _targets(
    model: PreTrainedModel, language_model: Sequence[nn.Module], wanted: str | list[str]
) -> str | list[str]:
    """What gets an adapter: what the configuration names, and only in the language model."""
    if language_model == [model]:
        return wanted
    # PEFT finds layers by the ends of their names, and those of vision towers end the same way
    # (q_proj, fc1), so it is given whole names. The output layer gets none, as with PEFT's own
    # all-linear.
    inside = {id(module) for part in language_model for module in part.modules()}
    head = model.get_output_embeddings()
    linear = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and id(module) in inside and module is not head
    ]
    if wanted == "all-linear":
        return linear
    endings = [wanted] if isinstance(wanted, str) else wanted
    chosen = [name for name in linear if name.split(".")[-1] in endings]
    if not chosen:
        raise ValueError(
            f"policy.lora.targets {wanted} name no linear layer of the language model; there are "
            f"{', '.join(sorted({name.split('.')[-1] for name in linear}))}"
        )
    return chosen
