"""The report of a sweep: ratio.png, report.md, report.html and results.json."""

from __future__ import annotations

import base64
import json
import math
from html import escape
from pathlib import Path

from markdown_it import MarkdownIt
from rich.table import Table

from rl.run.files import write_text
from rl.run.markdown_table import markdown_table
from rl.sweep.arms import Point
from rl.sweep.picture import draw_sweep
from rl.sweep.results import PointResult, SweepResults

PICTURE = "ratio.png"
# arXiv 2509.18154, Table 3 and section 3.4: OpenCompass and billions of RL tokens.
_PAPER = {0.0: ("76.0", 1.6), 0.5: ("74.9 short, 77.1 long", 3.1), 1.0: ("77.0", 4.4)}
_STYLE = """
body { font: 16px/1.55 system-ui, sans-serif; color: #22272e; max-width: 72rem; margin: 3rem auto;
  padding: 0 1.5rem }
img { max-width: 100% }
table { border-collapse: collapse; margin: 1rem 0 }
th, td { padding: .35rem .9rem; border-bottom: 1px solid #e5e7eb; text-align: right }
th:first-child, td:first-child { text-align: left }
th { color: #6b7280; font-weight: 600 }
"""


def write_report(root: Path, results: SweepResults) -> Path:
    """Write everything into the sweep's directory; returns the page to open."""
    draw_sweep(root / PICTURE, root.name, results)
    write_text(root / "results.json", json.dumps(results.as_json(), indent=1) + "\n")
    text = report(root.name, results)
    write_text(root / "report.md", text)
    page = root / "report.html"
    picture = base64.b64encode((root / PICTURE).read_bytes()).decode()
    write_text(page, _html(root.name, text, f"data:image/png;base64,{picture}"))
    return page


def _html(title: str, text: str, picture: str) -> str:
    """A page that needs no other file."""
    # The text holds names that people chose: no HTML of theirs passes.
    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)
    body = body.replace(f'src="{PICTURE}"', f'src="{picture}"')
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style>'
    return f"<!doctype html><html><head>{head}</head><body>{body}</body></html>\n"


def report(name: str, results: SweepResults) -> str:
    """The report as Markdown."""
    sections = [
        f"# {name}",
        f"![accuracy of every arm against trained tokens]({PICTURE})",
        "## Arms",
        markdown_table(*_arm_rows(results)),
        *_peak_section(results),
        *_transfer_section(results),
        *_paper_section(results),
        "## How this was measured",
        _method(results),
        *_failure_section(results),
    ]
    return "\n\n".join(sections) + "\n"


def summary_table(results: SweepResults) -> Table:
    """The arms for a terminal."""
    table = Table(title="held-out accuracy after training, mean over seeds", title_justify="left")
    table.add_column("arm", no_wrap=True)
    for column in ("trained tokens", *results.modes):
        table.add_column(column, justify="right")
    for one in results.points:
        accuracies = [_accuracy(one, mode) for mode in results.modes]
        table.add_row(label(one.point), _count(one.last.trained_tokens), *accuracies)
    return table


def _arm_rows(results: SweepResults) -> tuple[list[str], list[list[str]]]:
    modes = results.modes
    header = ["arm", "trained tokens", "with signal"]
    header += [f"{mode} accuracy" for mode in modes]
    header += [f"{mode} tokens" for mode in modes]
    header += [f"{mode} acc/k" for mode in modes]
    rows = []
    for one in results.points:
        last = one.last
        row = [label(one.point), _count(last.trained_tokens), _count(last.signal_tokens)]
        row += [_accuracy(one, mode) for mode in modes]
        row += [f"{last.tokens_mean[mode]:.1f}" for mode in modes]
        row += [_per_thousand(one, mode) for mode in modes]
        rows.append(row)
    return header, rows


def _per_thousand(one: PointResult, mode: str) -> str:
    """Accuracy per thousand response tokens at evaluation."""
    scale = 1000 / one.last.tokens_mean[mode]
    text = f"{scale * one.last.accuracy[mode]:.1f}"
    return f"{text} ± {scale * one.spread(mode):.1f}" if len(one.courses) > 1 else text


def _accuracy(one: PointResult, mode: str) -> str:
    text = f"{one.last.accuracy[mode]:.1%}"
    return f"{text} ± {100 * one.spread(mode):.1f}" if len(one.courses) > 1 else text


def label(point: Point) -> str:
    """What tells this point from the others, for people."""
    parts = [] if point.long_share is None else [f"{100 * point.long_share:g} % long"]
    parts += [f"{key.rpartition('.')[2]} {value}" for key, value in point.others]
    return ", ".join(parts) or "all"


def _peak_section(results: SweepResults) -> list[str]:
    measured = [one for one in results.points if results.peak(one.point) is not None]
    if not measured:
        return []
    rows = [_peak_row(results, one) for one in measured]
    header = ["arm", "best long accuracy", "tokens to the peak", "to within its interval"]
    header.append("by seed")
    return [
        "## Tokens to the long-only peak",
        *dict.fromkeys(_peak_line(results, one) for one in measured),
        markdown_table(header, rows),
        *(verdict(results, one) for one in measured if one.point.long_share == 0.5),
    ]


def _peak_line(results: SweepResults, one: PointResult) -> str:
    peak = results.peak(one.point)
    assert peak is not None
    others = ", ".join(f"{key} {value}" for key, value in one.point.others)
    return (
        f"Trained on the long mode alone{f' ({others})' if others else ''}, the policy is best at "
        f"{peak.accuracy:.1%} ± {100 * peak.half_width:.1f} held out, after "
        f"{_count(peak.tokens)} trained tokens. Percentages are of those tokens."
    )


def _peak_row(results: SweepResults, one: PointResult) -> list[str]:
    peak, mode = results.peak(one.point), results.long_mode
    assert peak is not None and mode is not None
    best = max(evaluation.accuracy[mode] for evaluation in one.mean_course)
    reached = (peak.accuracy, peak.accuracy - peak.half_width)
    tokens = [results.tokens_to(one.mean_course, accuracy) for accuracy in reached]
    by_seed = [results.tokens_to(course.evaluations, reached[1]) for course in one.courses]
    return [
        label(one.point),
        f"{best:.1%}",
        *(_of_peak(each, peak.tokens) for each in tokens),
        ", ".join("-" if each is None else _count(each) for each in by_seed),
    ]


def _of_peak(tokens: float | None, peak: float) -> str:
    if tokens is None:
        return "not reached"
    return f"{_count(tokens)} ({tokens / peak:.0%})" if peak else _count(tokens)


def verdict(results: SweepResults, one: PointResult) -> str:
    """Whether the half-and-half arm reaches the long-only peak with fewer tokens, in words."""
    peak, mode = results.peak(one.point), results.long_mode
    assert peak is not None and mode is not None
    if not peak.tokens:
        return "Trained on the long mode alone, the policy never rises above where it started."
    tokens = results.tokens_to(one.mean_course, peak.accuracy)
    close = results.tokens_to(one.mean_course, peak.accuracy - peak.half_width)
    best = max(evaluation.accuracy[mode] for evaluation in one.mean_course)
    gap = f"{100 * (peak.accuracy - best):.1f} points"
    arm = f"**{label(one.point)}**"
    if tokens is not None and tokens < peak.tokens:
        return f"{arm} reaches the long-only peak with {tokens / peak.tokens:.0%} of its tokens."
    if tokens is not None:
        return f"{arm} reaches the long-only peak, with no fewer tokens."
    if close is not None:
        return (
            f"{arm} at its best stays {gap} below the long-only peak, inside its 95 % interval; it "
            f"enters the interval with {close / peak.tokens:.0%} of the tokens."
        )
    return (
        f"{arm} does not reach the long-only peak: at its best it stays {gap} below, outside its "
        f"95 % interval, with {one.last.trained_tokens / peak.tokens:.0%} of the tokens."
    )


def _transfer_section(results: SweepResults) -> list[str]:
    rows = [
        [
            label(one.point),
            mode,
            f"{one.first.accuracy[mode]:.1%}",
            f"{_accuracy(one, mode)}",
            _change(one, mode),
        ]
        for one in results.points
        for mode, share in one.shares.items()
        if share == 0
    ]
    if not rows:
        return []
    header = ["arm", "mode it does not train", "before", "after", "points"]
    return ["## What training one mode does to the other", markdown_table(header, rows)]


def _change(one: PointResult, mode: str) -> str:
    """In points, with one run's 95 % interval over prompts."""
    points = 100 * (one.last.accuracy[mode] - one.first.accuracy[mode])
    interval = 100 * math.hypot(one.last.half_width[mode], one.first.half_width[mode])
    return f"{points:+.1f} ± {interval:.1f}"


def _paper_section(results: SweepResults) -> list[str]:
    rows = []
    for one in results.points:
        share, long_only = one.point.long_share, results.long_only(one.point)
        if share in _PAPER and long_only is not None:
            figure, tokens = _PAPER[share]
            ours = ", ".join(f"{one.last.accuracy[m]:.1%} {m}" for m in results.modes)
            relative = one.last.trained_tokens / long_only.last.trained_tokens
            paper = f"{tokens:g} B ({tokens / _PAPER[1.0][1]:.0%})"
            rows.append([label(one.point), ours, f"{relative:.0%}", figure, paper])
    if not rows:
        return []
    header = ["arm", "accuracy here", "tokens here", "the paper's OpenCompass", "its RL tokens"]
    return [
        "## Beside the paper",
        "MiniCPM-V 4.5 ([arXiv 2509.18154](https://arxiv.org/abs/2509.18154), Table 3) publishes "
        "three points of this curve, for an 8B vision-language model; percentages are of "
        "long-only. Whether its tokens count prompts, and in which mode its short-only model was "
        "evaluated, is not stated.",
        markdown_table(header, rows),
    ]


def _method(results: SweepResults) -> str:
    return (
        f"{_seeds(results)} ± is half the distance between the best and the worst seed; the peak's "
        "and the changes' are one run's 95 % interval over prompts. All arms ask the same prompts "
        "in the same order (but for groups that are replaced) and are evaluated on the same "
        "held-out prompts; curves are means over seeds, read at the evaluations. Trained tokens "
        "are prompt and response tokens of every trajectory that entered an update, groups whose "
        "rewards are all equal included; *with signal* leaves those out (a step's tokens of a mode "
        "times its share of groups with variance). *acc/k* is accuracy per thousand response "
        "tokens at evaluation. The peak is the best of many noisy evaluations, so it lies somewhat "
        "above what the policy holds."
    )


def _seeds(results: SweepResults) -> str:
    of_point = {
        label(one.point): ", ".join(str(course.seed) for course in one.courses)
        for one in results.points
    }
    if len(set(of_point.values())) == 1:
        return f"Seeds {next(iter(of_point.values()))};"
    listed = "; ".join(f"{name}: {seeds}" for name, seeds in of_point.items())
    return f"**The arms have different seeds** ({listed}), so compare with care;"


def _failure_section(results: SweepResults) -> list[str]:
    if not results.failures:
        return []
    rows = [[name, why] for name, why in results.failures.items()]
    return ["## Failed arms", markdown_table(["arm", "why"], rows)]


def _count(tokens: float) -> str:
    """`3.85 M`, `12.4 k`."""
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if tokens >= size:
            return f"{tokens / size:.3g} {unit}"
    return f"{tokens:.0f}"
