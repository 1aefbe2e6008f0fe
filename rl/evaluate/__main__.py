"""Asks all modes of a policy the same prompts and shows their accuracy side by side.

    python -m rl.evaluate run=runs/NAME eval.temperature=0
    python -m rl.evaluate model=DIR_OR_NAME run=runs/NAME split=train
    python -m rl.evaluate endpoint=http://127.0.0.1:8000/v1 config=evaluate.yaml
    python -m rl.evaluate run=runs/NAME reference=DIR_OR_NAME eval.samples=8

The policy is a run's newest or named checkpoint, a model, or an OpenAI-compatible server, the last
two under the settings of a run (`run=`) or a recipe (`config=`). With `reference=` the best of a
prompt's responses is chosen too, without any label or verifier: the one that the policy prefers
most against the reference, which is the model that it was trained from
(rl/evaluate/best_of.py). The same command goes on where a killed one stopped
(rl/evaluate/directory.py).
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import Field, model_validator
from rich.console import Console
from rich.table import Table

from rl.config.recipe import load
from rl.config.run import Config
from rl.evaluate import best_of
from rl.evaluate.best_of import BestOf, best_of_figures, choices
from rl.evaluate.directory import (
    EvaluationDirectory,
    Logprobs,
    label,
    open_evaluation,
    open_logprobs,
)
from rl.evaluate.evaluation import (
    METRICS,
    By,
    ModeResult,
    NothingAnswered,
    Question,
    ResponseLogprob,
    Sample,
    answered_before,
    evaluate,
    figures,
    questions,
    score_responses,
    scored_before,
)
from rl.evaluate.sources import Note, Session, Source
from rl.run.checkpoints import find_checkpoint
from rl.run.command import (
    Command,
    Keys,
    OptionalRecipeName,
    RunPath,
    ScaleName,
    Step,
    config_of_run,
    run_command,
)
from rl.run.files import stack_versions
from rl.run.terminal import progress_bars


class EvaluateKeys(Keys):
    run: RunPath | None = Field(default=None, examples=["runs/NAME"])
    """The run whose checkpoint is asked, or whose settings another policy is asked under."""
    step: Step | None = None
    """Step of the run's checkpoint; by default the newest."""
    model: str | None = Field(default=None, examples=["DIR_OR_NAME"])
    """A model that is asked in place of a run's checkpoint: its directory or name."""
    endpoint: str | None = Field(default=None, examples=["URL"])
    """Address of an OpenAI-compatible server that is asked in place of a run's checkpoint."""
    served_name: str | None = Field(default=None, examples=["NAME"])
    """Which of the endpoint's models is asked, where it serves several."""
    config: OptionalRecipeName = None
    scale: ScaleName = None
    split: Literal["heldout", "train"] = "heldout"
    """Whether held-out prompts are asked, or those that training asks first."""
    reference: str | None = Field(default=None, examples=["DIR_OR_NAME"])
    """A model against which the best of `eval.samples` responses is chosen: its directory or
    name."""
    out: Path | None = Field(default=None, examples=["DIR"])
    """Directory for responses and figures; by default in `evaluations` of the run's directory."""

    @model_validator(mode="after")
    def _name_one_policy_and_its_settings(self) -> EvaluateKeys:
        is_other = self.model is not None or self.endpoint is not None
        refusals = {
            "model= and endpoint= are two policies; name one": self.model and self.endpoint,
            "run= and config= both give settings; name one of them": self.run and self.config,
            "name a run directory, run=runs/NAME; or another policy, model= or endpoint=, and "
            "whose settings it is asked under, run= or config=": not (self.run or self.config),
            "config= names settings and no policy; add model=DIR_OR_NAME or endpoint=URL": (
                self.config and not is_other
            ),
            "step= is of a run's checkpoint; leave out model= and endpoint=": (
                self.step is not None and is_other
            ),
            "reference= needs the log-probabilities of given tokens, which a server does not "
            "give; evaluate run= or model=": self.reference and self.endpoint,
            "served_name= belongs to endpoint=URL; add it": self.served_name and not self.endpoint,
        }
        for why, is_refused in refusals.items():
            if is_refused:
                raise ValueError(why)
        return self


@dataclass(frozen=True)
class Evaluation:
    config: Config
    run: Path | None
    split: str
    data: str | None
    """Name of the data, where the command line says anything of them."""
    step: int | None
    """Checkpoint of the run; None takes the newest."""
    model: str | None
    endpoint: str | None
    served_name: str | None
    out: Path | None
    reference: str | None = None
    """Model that the best of a prompt's responses is chosen against; None chooses none."""


async def evaluate_policy(keys: EvaluateKeys) -> None:
    try:
        console = Console(stderr=True, soft_wrap=True, markup=False)
        await run_evaluation(evaluation_of(keys), console)
    except NothingAnswered as error:
        raise ValueError(str(error)) from error


def evaluation_of(keys: EvaluateKeys) -> Evaluation:
    """What the command line asks for, with its settings; raises ValueError for bad ones."""
    settings = keys.settings
    config = config_of_run(keys.run, settings) if keys.run else load(settings).config
    if keys.reference is not None:
        _refuse_no_choice(config)
    has_own_data = any(setting.startswith("data") for setting in settings)
    data = config.data
    return Evaluation(
        config=config,
        run=keys.run,
        split=keys.split,
        data=Path(data.heldout_path or data.path or data.kind).stem if has_own_data else None,
        step=keys.step,
        model=keys.model,
        endpoint=keys.endpoint,
        served_name=keys.served_name,
        out=keys.out,
        reference=keys.reference,
    )


def _refuse_no_choice(config: Config) -> None:
    if config.eval.samples < 2:
        raise ValueError(
            "reference= chooses the best of eval.samples responses, got eval.samples=1; set "
            "eval.samples=8, say"
        )
    if config.rollout.engine.get("speculative_config"):
        raise ValueError(
            "reference= has the engines score given tokens, which they cannot while they decode "
            "speculatively; set rollout.engine.speculative_config=null"
        )


async def run_evaluation(evaluation: Evaluation, console: Console) -> None:
    """Ask for what is not there yet and leave the figures; raises ValueError for bad input."""
    started = time.monotonic()
    config = evaluation.config
    # All input is read and checked here; engines start only once the directory is known to be ours.
    source = await _source(evaluation, console.print)
    reference = source.reference
    name = label(
        source.name,
        evaluation.data,
        evaluation.split,
        config.eval,
        reference.name if reference else None,
    )
    root = evaluation.out or (evaluation.run or Path()) / "evaluations" / name
    settings = settings_of(evaluation, source)
    asked = questions(config, source.prompts)
    with (
        open_evaluation(root, settings) as directory,
        open_logprobs(directory) if reference else nullcontext() as logprobs,
    ):
        # What is on disk and what is asked are compared anew each time, so the same command after a
        # kill, with more samples, or after a mended server does what is missing and no more.
        missing = len(asked) - len(answered_before(asked, directory.samples))
        console.print(f"{root}: {missing} of {len(asked)} responses are to be asked for")
        await _complete(config, source, asked, directory, logprobs, console)
        samples = answered_before(asked, directory.samples)
        results, best = figures(asked, samples), {}
        result = settings | {
            "policy": {"path": source.path, **source.policy},
            "n": len(source.prompts),
            "k": config.eval.samples,
            "metrics": METRICS,
            "modes": {mode: dataclasses.asdict(figure) for mode, figure in results.items()},
            "asked": missing,
            "seconds": round(time.monotonic() - started, 1),
            "versions": stack_versions(),
        }
        if reference and logprobs:
            in_order = [samples[question.key] for question in asked]
            by_policy, by_reference = (
                scored_before(in_order, logprobs.found, by) for by in get_args(By)
            )
            chosen = choices(in_order, by_policy, by_reference, config.align.dpo.beta)
            directory.write_choices(chosen)
            best = best_of_figures(samples, chosen)
            result["reference"] = {"path": reference.path, "weights": reference.weights}
            result["best_of"] = {
                "beta": config.align.dpo.beta,
                "metrics": best_of.METRICS,
                "modes": {mode: dataclasses.asdict(figure) for mode, figure in best.items()},
            }
        directory.write_result(result)
        # Drawing libraries start slowly, and help and a mistyped key are to be answered at once.
        from rl.evaluate.picture import draw_accuracy

        picture = draw_accuracy(root)
    Console().print(as_table(name, results, best))
    console.print(f"written to {root}; picture: {picture}")


async def _source(evaluation: Evaluation, note: Note) -> Source:
    config, split = evaluation.config, evaluation.split
    # Each source loads torch, engines or rules. What can be refused before comes before.
    if evaluation.endpoint is not None:
        from rl.evaluate.endpoint_source import endpoint_source

        return await endpoint_source(
            config, split, evaluation.endpoint, evaluation.served_name, note
        )
    if evaluation.model is not None:
        from rl.evaluate.engine_sources import model_source

        return model_source(config, split, evaluation.model, note, evaluation.reference)
    assert evaluation.run is not None, "the command line names one of them"
    checkpoint = find_checkpoint(evaluation.run, evaluation.step, note)
    from rl.evaluate.engine_sources import checkpoint_source

    return checkpoint_source(config, split, checkpoint, note, evaluation.reference)


async def _complete(
    config: Config,
    source: Source,
    asked: Sequence[Question],
    directory: EvaluationDirectory,
    logprobs: Logprobs | None,
    console: Console,
) -> None:
    """Have what is missing asked for and scored; what comes is in the directory at once.

    The engines of a model start only if something is missing from it, and those of the reference
    only when those of the policy have stopped: both together may not fit.
    """
    models: dict[By, Callable[[], AbstractAsyncContextManager[Session]]]
    models = {"policy": source.open}
    if source.reference is not None:
        models["reference"] = source.reference.open
    for by, open_session in models.items():
        samples = answered_before(asked, directory.samples)
        is_asked = by == "policy" and len(samples) < len(asked)
        if not is_asked and not _unscored(asked, directory, logprobs, by):
            continue
        async with open_session() as session:
            if is_asked:
                await _ask(config, source, session, asked, directory, logprobs is not None, console)
            unscored = _unscored(asked, directory, logprobs, by)
            if logprobs is not None and unscored:
                await _score(config, session, by, unscored, logprobs, console)


def _unscored(
    asked: Sequence[Question], directory: EvaluationDirectory, logprobs: Logprobs | None, by: By
) -> list[tuple[Question, Sample]]:
    """The responses that a model has yet to score; none where there is no reference."""
    if logprobs is None:
        return []
    samples = answered_before(asked, directory.samples)
    scored = scored_before(samples.values(), logprobs.found, by)
    answered = [(question, samples.get(question.key)) for question in asked]
    return [(q, one) for q, one in answered if one and one.is_answered and q.key not in scored]


async def _ask(
    config: Config,
    source: Source,
    session: Session,
    asked: Sequence[Question],
    directory: EvaluationDirectory,
    token_ids: bool,
    console: Console,
) -> None:
    known = answered_before(asked, directory.samples).values()
    with progress(asked, known, console) as advance:

        def keep(sample: Sample) -> None:
            directory.add(sample)
            advance(sample.mode)

        await evaluate(
            config,
            session.encode,
            session.sampler,
            session.scorer,
            source.prompts,
            known,
            keep,
            token_ids,
        )


async def _score(
    config: Config,
    session: Session,
    by: By,
    unscored: Sequence[tuple[Question, Sample]],
    logprobs: Logprobs,
    console: Console,
) -> None:
    assert session.responses is not None, "engines of an evaluation with a reference score"
    console.print(f"{len(unscored)} responses are to be scored by the {by}")
    failures: Counter[str] = Counter()
    what = f", scored by the {by}"
    with progress([question for question, _ in unscored], [], console, what) as advance:

        def keep(result: ResponseLogprob) -> None:
            logprobs.add(result)
            failures.update([result.failure] if result.failure else [])
            advance(result.mode)

        await score_responses(config, session.encode, session.responses, by, unscored, keep)
    for why, _ in failures.most_common(1):
        console.print(f"note: {failures.total()} of them have no score, most with: {why}")


def settings_of(evaluation: Evaluation, source: Source) -> dict[str, Any]:
    """All that decides what a response is and how it is scored, but for how many there are."""
    config = evaluation.config
    data = config.data.model_dump(mode="json", exclude_defaults=True)
    modes = {
        name: {"thinking": mode.thinking, "max_tokens": mode.max_tokens}
        for name, mode in config.modes.items()
    }
    reference = {"reference": {"weights": source.reference.weights}} if source.reference else {}
    return {
        "policy": dict(source.policy),
        **reference,
        "task": {"kind": config.data.kind, **data},
        "split": evaluation.split,
        "settings": {
            "temperature": config.eval.temperature,
            "top_p": config.eval.top_p,
            "seed": config.seed,
            "seed_requests": config.rollout.seed_requests,
            "dtype": config.policy.dtype,
            "modes": modes,
            "reward": config.reward.model_dump(mode="json", include={"probability", "plugins"}),
        },
    }


# What a person sees


@contextmanager
def progress(
    asked: Sequence[Question], known: Collection[Sample], console: Console, what: str = ""
) -> Iterator[Callable[[str], None]]:
    """A bar per mode, and what is done to it; yields what moves the bar of a mode by one."""
    keys = {sample.key for sample in known}
    with progress_bars(console) as bars:
        bar_of = {
            mode: bars.add_task(f"{mode}{what}", total=total)
            for mode, total in Counter(question.mode for question in asked).items()
        }
        for mode, done in Counter(q.mode for q in asked if q.key in keys).items():
            bars.advance(bar_of[mode], done)
        yield lambda mode: bars.advance(bar_of[mode])


def as_table(
    title: str, results: Mapping[str, ModeResult], best: Mapping[str, BestOf] | None = None
) -> Table:
    """A column per mode, side by side. best: of every mode, where there is a reference."""
    shown, chosen = list(results.values()), list((best or {}).values())
    first = shown[0]
    table = Table(title=title, title_justify="left")
    table.add_column(f"{first.count} prompts")
    for mode in results:
        table.add_column(mode, justify="right")
    rows = {
        "accuracy" if first.samples == 1 else f"accuracy (avg@{first.samples})": [
            f"{result.accuracy:.1%} ± {100 * result.half_width:.1f}" for result in shown
        ],
        f"best of {first.samples}, self-feedback": [
            f"{one.accuracy:.1%} ± {100 * one.half_width:.1f}" for one in chosen
        ],
        **{
            f"pass@{k}": [f"{r.pass_at[k]:.1%}" if k in r.pass_at else "-" for r in shown]
            for k in sorted({k for result in shown for k in result.pass_at if k > 1})
        },
        "tokens": [f"{result.tokens_mean:.1f}" for result in shown],
        "tokens of the best": [f"{one.tokens_mean:.1f}" for one in chosen],
        "truncated": [f"{result.truncated:.1%}" for result in shown],
        "leak": [f"{result.leak:.1%}" for result in shown],
        "unscored": [str(result.unscored) for result in shown],
        "unrewarded": [str(one.unrewarded) for one in chosen],
    }
    for name, cells in rows.items():
        if cells:
            table.add_row(name, *cells)
    return table


COMMAND = Command("rl.evaluate", __doc__, EvaluateKeys, evaluate_policy, (Config,), goes_on=True)


def main(arguments: Sequence[str]) -> int:
    """Return the exit code (rl/run/command.py)."""
    return run_command(COMMAND, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
