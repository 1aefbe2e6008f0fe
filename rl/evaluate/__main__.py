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

import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from pydantic import Field, model_validator
from rich.console import Console
from rich.table import Table

from rl.config.recipe import load
from rl.config.run import Config
from rl.config.section import Address
from rl.evaluate import best_of
from rl.evaluate.best_of import BestOf, best_of_figures, choices
from rl.evaluate.choosing import choosing_figures
from rl.evaluate.directory import EvaluationDirectory, Row, label, open_evaluation
from rl.evaluate.evaluation import (
    METRICS,
    By,
    Key,
    ModeResult,
    NothingAnswered,
    Question,
    Sample,
    answered_before,
    evaluate,
    figures,
    questions,
    score_responses,
    scored_before,
)
from rl.loop.stages import Prompt
from rl.run.checkpoints import find_checkpoint
from rl.run.command import (
    Command,
    Keys,
    OptionalRecipeName,
    RunPath,
    ScaleName,
    Step,
    config_of_run,
)
from rl.run.files import stack_versions
from rl.run.jsonl import write_records
from rl.run.terminal import progress_bars

if TYPE_CHECKING:
    from rl.evaluate.sources import Source


class EvaluateKeys(Keys):
    run: RunPath | None = Field(default=None, examples=["runs/NAME"])
    """The run whose checkpoint is asked, or whose settings another policy is asked under."""
    step: Step | None = None
    """Step of the run's checkpoint; by default the newest."""
    model: str | None = Field(default=None, examples=["DIR_OR_NAME"])
    """A model that is asked in place of a run's checkpoint: its directory or name."""
    endpoint: Address | None = Field(default=None, examples=["URL"])
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


async def evaluate_policy(keys: EvaluateKeys) -> None:
    """Ask for what is not there yet and leave the figures; raises ValueError for bad input."""
    started = time.monotonic()
    console = Console(stderr=True, soft_wrap=True, markup=False)
    config = config_of(keys)
    policy = keys.model or keys.endpoint
    if policy is None:
        assert keys.run is not None, "settings without a policy are refused"
        policy = find_checkpoint(keys.run, keys.step, console.print)
    # They load torch, engines, rules and matplotlib, for which what is refused above does not wait.
    from rl.evaluate import picture, sources

    # All input is read and checked here; engines start only once the directory is known to be ours.
    if keys.endpoint is not None:
        prompts, models = await sources.endpoint_sources(
            config, keys.split, keys.endpoint, keys.served_name, console.print
        )
    else:
        prompts, models = sources.engine_sources(
            config, keys.split, policy, keys.reference, console.print
        )
    reference = models["reference"].name if "reference" in models else None
    has_own_data = any(setting.startswith("data") for setting in keys.settings)
    name = label(models["policy"].name, config, keys.split, has_own_data, reference)
    root = keys.out or (keys.run or Path()) / "evaluations" / name
    settings = settings_of(config, keys.split, models)
    wanted = questions(config, prompts)
    with open_evaluation(root, settings, has_reference=reference is not None) as directory:
        # What is on disk and what is asked are compared anew each time, so the same command after a
        # kill, with more samples, or after a mended server does what is missing and no more.
        missing = len(wanted) - len(answered_before(wanted, directory.samples))
        console.print(f"{root}: {missing} of {len(wanted)} responses are to be asked for")
        try:
            await _complete(config, prompts, models, directory, console)
            samples = answered_before(wanted, directory.samples)
            results, best = figures(config, wanted, samples), {}
            result = settings | {by: {"path": m.path, **m.identity} for by, m in models.items()}
            result |= {
                "n": len(prompts),
                "k": config.eval.samples,
                "metrics": METRICS,
                "modes": {mode: asdict(figure) for mode, figure in results.items()},
                "asked": missing,
                "seconds": round(time.monotonic() - started, 1),
                "versions": stack_versions(),
            }
            if chosen_figures := choosing_figures(config.modes, wanted, samples):
                result["choosing"] = chosen_figures
            if reference is not None:
                in_order = [samples[question.key] for question in wanted]
                by_policy, by_reference = (
                    scored_before(in_order, directory.logprobs, by) for by in get_args(By)
                )
                chosen = choices(in_order, by_policy, by_reference, config.align.dpo.beta)
                write_records(root / "best_of.jsonl", map(asdict, chosen))
                best = best_of_figures(samples, chosen)
                result["best_of"] = {
                    "beta": config.align.dpo.beta,
                    "metrics": best_of.METRICS,
                    "modes": {mode: asdict(figure) for mode, figure in best.items()},
                }
        except NothingAnswered as error:
            raise ValueError(str(error)) from error
        directory.write_result(result)
        drawn = picture.draw_accuracy(root)
    Console().print(as_table(name, results, best))
    console.print(f"written to {root}; picture: {drawn}")


def config_of(keys: EvaluateKeys) -> Config:
    """The settings of an evaluation; raises ValueError for bad ones."""
    config = config_of_run(keys.run, keys.settings) if keys.run else load(keys.settings).config
    if keys.reference is not None and config.eval.samples < 2:
        raise ValueError(
            "reference= chooses the best of eval.samples responses, got eval.samples=1; set "
            "eval.samples=8, say"
        )
    if keys.reference is not None and config.rollout.engine.get("speculative_config"):
        raise ValueError(
            "reference= has the engines score given tokens, which they cannot while they decode "
            "speculatively; set rollout.engine.speculative_config=null"
        )
    return config


def settings_of(config: Config, split: str, models: Mapping[By, Source]) -> dict[str, Any]:
    """All that decides what a response is and how it is scored, but for how many there are."""
    data = config.data.model_dump(mode="json", exclude_defaults=True)
    # What is as it is by default is left out, so that a key that is new does not make an evaluation
    # of before another one.
    asked = {"thinking", "max_tokens", "chat_template_kwargs"}
    modes = {
        name: mode.model_dump(mode="json", include=asked, exclude_defaults=True)
        for name, mode in config.modes.items()
    }
    tags = config.policy.model_dump(mode="json", include={"think_tags"}, exclude_defaults=True)
    return {
        **{by: dict(model.identity) for by, model in models.items()},
        "task": {"kind": config.data.kind, **data},
        "split": split,
        "settings": {
            "temperature": config.eval.temperature,
            "top_p": config.eval.top_p,
            "seed": config.seed,
            "seed_requests": config.rollout.seed_requests,
            "dtype": config.policy.dtype,
            "modes": modes,
            **tags,
            "reward": config.reward.model_dump(mode="json", include={"probability", "plugins"}),
        },
    }


async def _complete(
    config: Config,
    prompts: Sequence[Prompt],
    models: Mapping[By, Source],
    directory: EvaluationDirectory,
    console: Console,
) -> None:
    """Have what is missing asked for and scored; what comes is in the directory at once."""
    wanted, is_best_of = questions(config, prompts), "reference" in models

    def unscored(by: By) -> list[tuple[Question, Sample]]:
        samples = answered_before(wanted, directory.samples)
        scored = scored_before(samples.values(), directory.logprobs, by)
        answered = [(question, samples.get(question.key)) for question in wanted]
        return [(q, s) for q, s in answered if s and s.is_answered and q.key not in scored]

    # The engines of a model start only if something is missing from it, and those of the reference
    # only when those of the policy have stopped: both together may not fit.
    for by, model in models.items():
        known = answered_before(wanted, directory.samples)
        is_asked = by == "policy" and len(known) < len(wanted)
        if not is_asked and not (is_best_of and unscored(by)):
            continue
        async with model.open() as session:
            encode, sampler, scorer = session.encode, session.sampler, session.scorer
            if is_asked:
                with progress(wanted, known, directory.add, console) as keep:
                    await evaluate(
                        config, encode, sampler, scorer, prompts, known.values(), keep, is_best_of
                    )
            if session.responses is None or not (responses := unscored(by)):
                continue
            console.print(f"{len(responses)} responses are to be scored by the {by}")
            num_before, what = len(directory.logprobs), f", scored by the {by}"
            scored = [question for question, _ in responses]
            with progress(scored, {}, directory.add_logprob, console, what) as keep:
                await score_responses(config, encode, session.responses, by, responses, keep)
        failures = Counter(row.failure for row in directory.logprobs[num_before:] if row.failure)
        for why, _ in failures.most_common(1):
            console.print(f"note: {failures.total()} of them have no score, most with: {why}")


@contextmanager
def progress(
    wanted: Sequence[Question],
    known: Collection[Key],
    add: Callable[[Row], None],
    console: Console,
    what: str = "",
) -> Iterator[Callable[[Row], None]]:
    """A bar per mode, and what is done to it; yields what adds a row and moves its mode's bar."""
    with progress_bars(console) as bars:
        totals = Counter(question.mode for question in wanted)
        done = Counter(question.mode for question in wanted if question.key in known)
        bar_of = {
            mode: bars.add_task(f"{mode}{what}", total=total, completed=done[mode])
            for mode, total in totals.items()
        }

        def keep(row: Row) -> None:
            add(row)
            bars.advance(bar_of[row.mode])

        yield keep


def as_table(title: str, results: Mapping[str, ModeResult], best: Mapping[str, BestOf]) -> Table:
    """A column per mode, side by side. best: of every mode, where there is a reference."""
    shown, chosen = list(results.values()), list(best.values())
    first = shown[0]
    table = Table(title=title, title_justify="left")
    table.add_column(f"{first.count} prompts")
    for mode in results:
        table.add_column(mode, justify="right")
    rows = {
        "accuracy" if first.samples == 1 else f"accuracy (avg@{first.samples})": [
            f"{result.accuracy:.1%} ± {100 * result.half_width:.1f}" for result in shown
        ],
        **{
            f"accuracy of {source}": [
                f"{r.by_source[source].accuracy:.1%} ± {100 * r.by_source[source].half_width:.1f}"
                for r in shown
            ]
            for source in first.by_source
        },
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
        "reasons": ["-" if r.reasons is None else f"{r.reasons:.1%}" for r in shown]
        if any(result.reasons is not None for result in shown)
        else [],
        "unscored": [str(result.unscored) for result in shown],
        "unrewarded": [str(one.unrewarded) for one in chosen],
    }
    for name, cells in rows.items():
        if cells:
            table.add_row(name, *cells)
    return table


main = Command("rl.evaluate", __doc__, EvaluateKeys, evaluate_policy, (Config,), goes_on=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
