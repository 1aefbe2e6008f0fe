"""Export: `python -m rl.export run=runs/NAME out=DIR [step=N] [prove=false]`.

Makes a Hugging Face directory of a checkpoint that `vllm serve` takes as it is, in every mode of
the run. Unless told not to, it is proven first (rl/export/proof.py). The directory appears
complete, or not at all.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from rl.config.run import Config
from rl.export.card import CardFacts, Figures, model_card, serve_command
from rl.export.proof import ModeProof, prove, require_equal
from rl.run.checkpoints import Checkpoint, find_checkpoint
from rl.run.command import config_of_run, exit_code
from rl.run.directory import RunDirectory
from rl.run.files import stack_versions, sync_to_disk
from rl.run.sinks import read_metrics

# Its grammar is that of rollout/chat.py: with enable_thinking all up to </think> is reasoning,
# without it all is content.
REASONING_PARSER = "qwen3"


@dataclass(frozen=True)
class Export:
    """What a command line asks for."""

    config: Config
    out: Path
    step: int | None
    """None takes the newest checkpoint."""
    prove: bool

    @property
    def run(self) -> RunDirectory:
        return RunDirectory(Path(self.config.run))


def main(arguments: list[str]) -> int:
    """Return the exit code (rl/run/command.py)."""
    console = Console(stderr=True, soft_wrap=True)
    return exit_code(lambda: run_export(parse(arguments), console), "make room and export again")


def parse(arguments: Sequence[str]) -> Export:
    """Read `out`, `step` and `prove`; the other arguments are `run` and settings of the run."""
    own = {"out": "", "step": "", "prove": "true"}
    others = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if equals and key in own:
            own[key] = value
        else:
            others.append(argument)
    if not own["out"]:
        raise ValueError("name the directory to export to: out=DIR")
    if own["prove"] not in ("true", "false"):
        raise ValueError(f"prove must be true or false, got {own['prove']!r}")
    if not re.fullmatch("[0-9]*", own["step"]):
        raise ValueError(f"step must be the number of a checkpoint, got {own['step']!r}")
    step = int(own["step"]) if own["step"] else None
    return Export(config_of_run(others), Path(own["out"]), step, own["prove"] == "true")


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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
