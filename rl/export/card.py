"""The README.md of an exported model: what it is, how to ask it, what it was measured to do."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from rl.config.rollout import EvalConfig
from rl.config.run import Config
from rl.export.proof import ModeProof
from rl.run.templates import templates

# What card.md.j2 has columns for, in this order.
_RATES = (("wrong_claims", ".3f"), ("wrong_responses", ".1%"), ("claims", ".3f"))
_COLUMNS = ["chat_template_kwargs", "temperature", "top_p", "max_tokens"]
Figures = Mapping[str, Mapping[str, float]]
"""Held-out figures by mode, named as the fields of rl/evaluate/evaluation.py:ModeResult."""


@dataclass(frozen=True)
class CardFacts:
    """All that a card says beyond the configuration."""

    name: str
    """The directory's name."""
    step: int
    """RL steps."""
    trained_tokens: Mapping[str, int]
    before: Figures
    after: Figures
    """Empty where the checkpoint was not evaluated."""
    trained_with: Mapping[str, str]
    """Library versions; empty where the run has not ended, and so not written them."""
    exported_with: Mapping[str, str]
    requests: Mapping[str, Mapping[str, Any]]
    """How each mode is asked for, as fields of a chat completion request."""
    default_mode: str
    reasoning_parser: str | None
    engine: Mapping[str, Any]
    """vLLM engine arguments without which the model is not served."""
    proof: Mapping[str, ModeProof]
    """Empty where the export was not proven."""
    alignment: Mapping[str, Any] | None = None
    """What the gate of the RLAIF-V pass measured (rl/align/gate.py); None before any pass."""


def model_card(config: Config, config_text: str, facts: CardFacts) -> str:
    """Return the card as Markdown with the front matter of the Hugging Face hub.

    config_text: the run's config.yaml as it stands.
    """
    model, alignment = config.policy.model, facts.alignment
    # The hub links a card to its base model by name; a path on this machine means nothing there.
    is_hub_name = re.fullmatch(r"[\w.-]+/[\w.-]+", model) and not Path(model).exists()
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        base_model=model if is_hub_name else None,
        tags=["grpo", "reasoning", "hybrid-reasoning"],
    )
    trained = [f"{facts.step} steps of reinforcement learning (GRPO)"] if facts.step else []
    before, evaluated = facts.before, config.eval
    if alignment is not None:
        plural = "" if alignment["accepted"] == 1 else "s"
        trained.append(
            f"{alignment['accepted']} iteration{plural} of alignment on AI feedback (RLAIF-V, DPO)"
        )
        # A pass measures before and after itself, with the settings of its own gate.
        before, evaluated = alignment["before"]["modes"], EvalConfig(**alignment["asked"])
    # As JSON: people paste these into requests.
    requests = [
        [mode, *(json.dumps(fields[column]) for column in _COLUMNS)]
        for mode, fields in facts.requests.items()
    ]
    results: list[list[str]] = []
    for mode, figures in facts.after.items():
        at_first = _accuracy(before[mode]) if mode in before else ""
        length = [f"{figures['tokens_mean']:.1f}", f"{figures['truncated']:.1%}"]
        results.append([mode, at_first, _accuracy(figures), *length])
    proof = [
        [mode, p.prompts, p.tokens, f"{p.max_difference:.1e}", f"{p.greedy_gap:.1e}"]
        for mode, p in facts.proof.items()
    ]
    hallucination: list[list[str]] = []
    if alignment is not None:
        first, last = (alignment[when]["hallucination"] for when in ("before", "after"))
        # Every rate before and after the last iteration, of the modes that both measured.
        hallucination = [
            [mode, *(format(m[mode][rate], form) for rate, form in _RATES for m in (first, last))]
            for mode in first
            if mode in last
        ]
    text = _TEMPLATES.get_template("card.md.j2").render(
        config=config,
        config_text=config_text,
        facts=facts,
        data=data.to_yaml(),
        trained=trained,
        evaluated=evaluated,
        command=serve_command(
            facts.name, config.policy.dtype, facts.reasoning_parser, facts.engine
        ),
        columns=_COLUMNS,
        requests=requests,
        results=results,
        hallucination=hallucination,
        proof=proof,
    )
    # It reads the front matter back, as the hub will.
    return str(ModelCard(text))


def serve_command(
    name: str, dtype: str, reasoning_parser: str | None, engine: Mapping[str, Any]
) -> str:
    """Return the shell command that serves the directory `name` of the working directory.

    engine: vLLM engine arguments without which the model is not served.
    """
    parser = f" --reasoning-parser {reasoning_parser}" if reasoning_parser else ""
    # Left to itself vLLM computes float32 weights in half precision.
    precision = f" --dtype {dtype}" if dtype == "float32" else ""
    needed = "".join(
        f" --{key.replace('_', '-')} {shlex.quote(json.dumps(value))}"
        for key, value in engine.items()
    )
    return f"vllm serve {shlex.quote(f'./{name}')}{parser}{precision}{needed}"


def _accuracy(figures: Mapping[str, float]) -> str:
    return f"{figures['accuracy']:.1%} ± {100 * figures['half_width']:.1f}"


def _fence_length(text: str) -> int:
    """Return how many backticks open a code block that no text inside can close."""
    return max(3, 1 + max((len(ticks) for ticks in re.findall(r"`+", text)), default=0))


_TEMPLATES = templates(Path(__file__).parent)
_TEMPLATES.globals["fence_length"] = _fence_length
_TEMPLATES.filters["json"] = json.dumps
