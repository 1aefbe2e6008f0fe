"""Makes a Hugging Face directory of a checkpoint that `vllm serve` takes as it is, in every mode.

    python -m rl.export run=runs/NAME out=DIR
    python -m rl.export run=runs/NAME out=DIR step=40 prove=false

Unless told not to, the directory is proven in vLLM first (rl/export/proof.py). It appears
complete, or not at all.
"""

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import Field
from rich.console import Console

from rl.config.recipe import count_visible_gpus
from rl.config.run import Config
from rl.run.checkpoints import find_checkpoint
from rl.run.command import Command, Keys, RunPath, Step, Switch, config_of_run
from rl.run.directory import RunDirectory
from rl.run.files import stack_versions, sync_to_disk


class ExportKeys(Keys):
    run: RunPath
    """The run whose checkpoint is exported; `runs/NAME/align` for the policy of an RLAIF-V pass."""
    out: Path = Field(examples=["DIR"])
    """The directory to export to; it must be new or empty."""
    step: Step | None = None
    """Step of the checkpoint; by default the newest."""
    prove: Switch = True
    """Whether vLLM must first give what the checkpoint's model gives, token by token."""


def export(keys: ExportKeys) -> None:
    """Write, prove and put in place; raises ValueError and leaves nothing behind if it cannot."""
    config = config_of_run(keys.run, keys.settings)
    needed, visible = config.rollout.tensor_parallel, count_visible_gpus()
    if keys.prove and config.resources.gpus and visible < needed:
        raise ValueError(
            f"the proof runs vLLM on this machine, on as many GPUs as an engine of the run had: "
            f"{needed}; it shows {visible}. Export on a node with GPUs (the run directory is "
            "shared), or set prove=false"
        )
    console = Console(stderr=True, soft_wrap=True)
    run = RunDirectory(Path(config.run))
    checkpoint = find_checkpoint(run.root, keys.step, console.print)
    model, out = checkpoint.path / "model", keys.out.absolute()
    with _complete_or_absent(out) as partial:
        # They load torch; what is refused above does not wait for that.
        from rl.export import card, directory, proof

        console.print(f"exporting step {checkpoint.step} of {run.root}")
        template = directory.serving_template(model, config.modes, config.policy.think_tags)
        directory.write_serving_directory(model, partial, template, config.modes)
        proven: dict[str, proof.ModeProof] = {}
        if keys.prove:
            console.print("proving it in vLLM against the checkpoint's model")
            proven = proof.prove(config, model, partial)
            for mode, figures in proven.items():
                console.print(
                    f"mode {mode}: {figures.prompts} prompts, {figures.tokens} tokens, logprob "
                    f"difference {figures.mean_difference:.2g} on average, "
                    f"{figures.max_difference:.2g} at most, largest greedy gap "
                    f"{figures.greedy_gap:.2g}"
                )
            proof.require_equal(proven, config.canary_tolerance, config.canary_largest)
        versions = stack_versions()
        text = card.model_card(config, run, checkpoint, out.name, proven, versions)
        (partial / "README.md").write_text(text, encoding="utf-8")
        # A bare name could be one of the Hugging Face Hub.
        typed = os.path.join(os.curdir, keys.out)
        command = card.serve_command(config, typed, model, card.program_here())
    console.print(f"{out} is ready: {command}")


@contextmanager
def _complete_or_absent(out: Path) -> Iterator[Path]:
    """Yield a directory beside `out` to fill; it becomes `out` unless the block raises.

    Raises ValueError if there can be no such directory.
    """
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
    try:
        yield partial
        # On disk before it has its name, so that a power cut leaves no half of it as `out`.
        for path in (*partial.iterdir(), partial):
            sync_to_disk(path)
        partial.rename(out)
        sync_to_disk(out.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


main = Command("rl.export", __doc__, ExportKeys, export, (Config,))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
