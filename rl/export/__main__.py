"""Makes a Hugging Face directory of a checkpoint that `vllm serve` takes as it is, in every mode.

    python -m rl.export run=runs/NAME out=DIR
    python -m rl.export run=runs/NAME out=DIR step=40 prove=false

Unless told not to, the directory is proven in vLLM first (rl/export/proof.py). It appears
complete, or not at all.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field
from rich.console import Console

from rl.config.run import Config
from rl.export.card import CardFacts, Figures, model_card, serve_command
from rl.export.proof import ModeProof, prove, require_equal
from rl.run.checkpoints import Checkpoint, find_checkpoint
from rl.run.command import Command, Keys, RunPath, Step, Switch, config_of_run, run_command
from rl.run.directory import RunDirectory
from rl.run.files import stack_versions, sync_to_disk
from rl.run.sinks import read_metrics

# Its grammar is that of rollout/chat.py: with enable_thinking all up to </think> is reasoning,
# without it all is content.
REASONING_PARSER = "qwen3"


class ExportKeys(Keys):
    run: RunPath
    """The run whose checkpoint is exported; `runs/NAME/align` for the policy of an RLAIF-V pass."""
    out: Path = Field(examples=["DIR"])
    """The directory to export to; it must be new or empty."""
    step: Step | None = None
    """Step of the checkpoint; by default the newest."""
    prove: Switch = True
    """Whether vLLM must first give what the checkpoint's model gives, token by token."""


@dataclass(frozen=True)
class Export:
    config: Config
    out: Path
    step: int | None
    """None takes the newest checkpoint."""
    prove: bool

    @property
    def run(self) -> RunDirectory:
        return RunDirectory(Path(self.config.run))


def export(keys: ExportKeys) -> None:
    config = config_of_run(keys.run, keys.settings)
    run_export(
        Export(config, keys.out, keys.step, keys.prove), Console(stderr=True, soft_wrap=True)
    )


def run_export(export: Export, console: Console) -> None:
    """Write, prove and put in place; raises ValueError and leaves nothing behind if it cannot."""
    checkpoint = find_checkpoint(export.run.root, export.step, console.print)
    out = export.out.absolute()
    partial = _make_partial(out)
    try:
        console.print(f"exporting step {checkpoint.step} of {export.run.root}")
        write_directory(export.config, checkpoint, partial)
        proof = {}
        if export.prove:
            console.print("proving it in vLLM against the checkpoint's model")
            proof = prove(export.config, checkpoint.path / "model", partial)
            _print_proof(proof, console)
            require_equal(proof, export.config.canary_tolerance)
        facts = gather_facts(export, checkpoint, proof)
        config_text = export.run.config_path.read_text(encoding="utf-8")
        card = model_card(export.config, config_text, facts)
        (partial / "README.md").write_text(card, encoding="utf-8")
        for path in (*partial.iterdir(), partial):
            sync_to_disk(path)
        partial.rename(out)
        sync_to_disk(out.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    dtype = export.config.policy.dtype
    command = serve_command(out.name, dtype, facts.reasoning_parser, facts.engine)
    console.print(f"{out} is ready: {command}")


def _make_partial(out: Path) -> Path:
    """The directory beside `out` that is filled first; raises ValueError if there can be none."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists and is no empty directory; name another with out=DIR")
    partial = out.with_name(f".{out.name}.partial")
    if partial.exists():
        raise ValueError(
            f"{partial} is in the way: another export is writing it, or was killed; wait for that "
            "one, or remove it"
        )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir()
    except OSError as error:
        raise ValueError(
            f"{out} cannot be written ({error.strerror}: {error.filename}); name another "
            "directory with out=DIR"
        ) from error
    return partial


def write_directory(config: Config, checkpoint: Checkpoint, directory: Path) -> None:
    """Fill an empty directory with all that is served; the card comes later."""
    from rl.export.chat_template import serving_template
    from rl.export.directory import default_mode, write_serving_directory

    source = checkpoint.path / "model"
    thinks_by_default = config.modes[default_mode(config.modes)].thinking
    template = serving_template(source, thinks_by_default)
    write_serving_directory(source, directory, template, config.modes)


def gather_facts(
    export: Export, checkpoint: Checkpoint, proof: Mapping[str, ModeProof]
) -> CardFacts:
    from rl.export.directory import default_mode, request_fields
    from rollout.engines.media import serving_arguments

    modes = export.config.modes
    reasons = any(mode.thinking for mode in modes.values())
    alignment = checkpoint.progress.get("align")
    if alignment is None:
        step, after = checkpoint.step, _heldout_figures(export.run, checkpoint.step, modes)
    else:
        step, after = alignment["origin"].get("step", 0), alignment["after"]["modes"]
    return CardFacts(
        name=export.out.absolute().name,
        step=step,
        trained_tokens=checkpoint.progress["progress"]["trained_tokens"],
        before=checkpoint.progress["before"],
        after=after,
        alignment=alignment,
        trained_with=_trained_with(export.run),
        exported_with=stack_versions(),
        requests={name: request_fields(mode) for name, mode in modes.items()},
        default_mode=default_mode(modes),
        reasoning_parser=REASONING_PARSER if reasons else None,
        engine=serving_arguments(checkpoint.path / "model"),
        proof=proof,
    )


def _heldout_figures(run: RunDirectory, step: int, modes: Mapping[str, object]) -> Figures:
    """What training measured at this step, in every mode; empty where it did not."""
    logged = read_metrics(run.metrics_path).get(step, {})
    figures = {}
    for mode in modes:
        prefix = f"eval/{mode}/"
        found = {k.removeprefix(prefix): v for k, v in logged.items() if k.startswith(prefix)}
        if found:
            figures[mode] = found
    return figures


def _trained_with(run: RunDirectory) -> dict[str, str]:
    summary = run.root / "summary.json"
    if not summary.is_file():
        return {}
    return json.loads(summary.read_text(encoding="utf-8"))["versions"]


def _print_proof(proof: Mapping[str, ModeProof], console: Console) -> None:
    for mode, found in proof.items():
        console.print(
            f"mode {mode}: {found.prompts} prompts, {found.tokens} tokens, largest logprob "
            f"difference {found.max_difference:.2g}, largest greedy gap {found.greedy_gap:.2g}"
        )


COMMAND = Command("rl.export", __doc__, ExportKeys, export, (Config,))


def main(arguments: Sequence[str]) -> int:
    """Return the exit code (rl/run/command.py)."""
    return run_command(COMMAND, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
