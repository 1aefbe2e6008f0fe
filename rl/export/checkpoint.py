"""Fills the directory of an export: what is served, its proof, and the card that describes it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from rl.config.run import Config
from rl.export.card import CardFacts, Figures, model_card, serve_command
from rl.export.chat_template import serving_template
from rl.export.directory import default_mode, request_fields, write_serving_directory
from rl.export.proof import ModeProof, prove, require_equal
from rl.run.checkpoints import Checkpoint
from rl.run.directory import RunDirectory
from rl.run.files import stack_versions
from rl.run.sinks import read_metrics
from rollout.engines.media import serving_arguments

# Its grammar is that of rollout/chat.py: with enable_thinking all up to </think> is reasoning,
# without it all is content.
REASONING_PARSER = "qwen3"


def export_checkpoint(
    config: Config,
    run: RunDirectory,
    checkpoint: Checkpoint,
    directory: Path,
    name: str,
    proves: bool,
    note: Callable[[str], None],
) -> str:
    """Fill an empty directory and return the command that serves it.

    name: what the directory will be called once it is complete. proves: whether vLLM must give what
    the checkpoint's model gives. Raises ValueError if it does not, or cannot be asked.
    """
    write_model(config, checkpoint, directory)
    proof: dict[str, ModeProof] = {}
    if proves:
        note("proving it in vLLM against the checkpoint's model")
        proof = prove(config, checkpoint.path / "model", directory)
        for mode, figures in proof.items():
            note(
                f"mode {mode}: {figures.prompts} prompts, {figures.tokens} tokens, largest logprob "
                f"difference {figures.max_difference:.2g}, largest greedy gap "
                f"{figures.greedy_gap:.2g}"
            )
        require_equal(proof, config.canary_tolerance)
    facts = _card_facts(config, run, checkpoint, name, proof)
    card = model_card(config, run.config_path.read_text(encoding="utf-8"), facts)
    (directory / "README.md").write_text(card, encoding="utf-8")
    return serve_command(name, config.policy.dtype, facts.reasoning_parser, facts.engine)


def write_model(config: Config, checkpoint: Checkpoint, directory: Path) -> None:
    """Write all that is served: the model, its chat template, the settings of the modes."""
    source = checkpoint.path / "model"
    thinks_by_default = config.modes[default_mode(config.modes)].thinking
    template = serving_template(source, thinks_by_default)
    write_serving_directory(source, directory, template, config.modes)


def _card_facts(
    config: Config,
    run: RunDirectory,
    checkpoint: Checkpoint,
    name: str,
    proof: Mapping[str, ModeProof],
) -> CardFacts:
    modes, alignment = config.modes, checkpoint.progress.get("align")
    if alignment is None:
        step, after = checkpoint.step, _heldout_figures(run, checkpoint.step, modes)
    else:
        # The steps of a pass are its iterations; the card tells how far RL went before them.
        step, after = alignment["origin"].get("step", 0), alignment["after"]["modes"]
    trained_with = {}
    if run.summary_path.is_file():
        trained_with = json.loads(run.summary_path.read_text(encoding="utf-8"))["versions"]
    return CardFacts(
        name=name,
        step=step,
        trained_tokens=checkpoint.progress["progress"]["trained_tokens"],
        before=checkpoint.progress["before"],
        after=after,
        alignment=alignment,
        trained_with=trained_with,
        exported_with=stack_versions(),
        requests={mode: request_fields(settings) for mode, settings in modes.items()},
        default_mode=default_mode(modes),
        reasoning_parser=REASONING_PARSER if any(m.thinking for m in modes.values()) else None,
        engine=serving_arguments(checkpoint.path / "model"),
        proof=proof,
    )


def _heldout_figures(run: RunDirectory, step: int, modes: Mapping[str, object]) -> Figures:
    """What training measured at this step, in every mode; empty where it did not."""
    logged = read_metrics(run.metrics_path).get(step, {})
    prefixes = {mode: f"eval/{mode}/" for mode in modes}
    by_mode = {
        mode: {key.removeprefix(p): v for key, v in logged.items() if key.startswith(p)}
        for mode, p in prefixes.items()
    }
    return {mode: figures for mode, figures in by_mode.items() if figures}
