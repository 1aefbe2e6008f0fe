"""The report of a sweep: ratio.png, report.md, report.html and results.json."""

import base64
import json
import math
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt
from rich.table import Table

from rl.run.files import write_text
from rl.run.templates import templates
from rl.show.page import framed
from rl.sweep.arms import Point
from rl.sweep.picture import draw_sweep
from rl.sweep.results import Peak, PointResult, SweepResults

PICTURE = "ratio.png"
# By share of long: OpenCompass, and billions of RL tokens (arXiv 2509.18154, Table 3, section 3.4).
_PAPER = {0.0: ("76.0", 1.6), 0.5: ("74.9 short, 77.1 long", 3.1), 1.0: ("77.0", 4.4)}


def write_report(root: Path, results: SweepResults) -> Path:
    """Write everything into the sweep's directory; returns the page to open."""
    draw_sweep(root / PICTURE, root.name, results)
    write_text(root / "results.json", json.dumps(results.as_json(), indent=1) + "\n")
    text = report(root.name, results)
    write_text(root / "report.md", text)
    # The text holds names that people chose, so no HTML in it may become HTML of the page.
    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)
    picture = base64.b64encode((root / PICTURE).read_bytes()).decode()
    # The Markdown names the picture beside it; the page holds it, so that it can be sent alone.
    body = body.replace(f'src="{PICTURE}"', f'src="data:image/png;base64,{picture}"')
    page = root / "report.html"
    write_text(page, framed(root.name, body))
    return page


def report(name: str, results: SweepResults) -> str:
    """Return the report as Markdown."""
    header, arms = _arms(results)
    with_peak = [(p, peak) for p in results.points if (peak := results.peak(p.point)) is not None]
    # Arms that vary something beside the share have a peak for each value of it.
    peaks = {
        ", ".join(f"{key} {value}" for key, value in p.point.others): peak for p, peak in with_peak
    }
    seeds = {label(p.point): ", ".join(map(str, p.courses)) for p in results.points}
    return _TEMPLATES.get_template("report.md.j2").render(
        name=name,
        picture=PICTURE,
        arms_header=header,
        arms=arms,
        peaks=peaks,
        against_peak=[_against_peak(results, p, peak) for p, peak in with_peak],
        transfer=_transfer(results),
        paper=_paper(results),
        seeds=seeds,
        failures=results.failures,
    )


def summary_table(results: SweepResults) -> Table:
    """Return the arms for a terminal."""
    table = Table(title="held-out accuracy after training, mean over seeds", title_justify="left")
    table.add_column("arm", no_wrap=True)
    for column in ("trained tokens", *results.modes):
        table.add_column(column, justify="right")
    for point in results.points:
        accuracies = [_accuracy(point, mode) for mode in results.modes]
        table.add_row(label(point.point), in_tokens(point.last.trained_tokens), *accuracies)
    return table


def label(point: Point) -> str:
    """Return what tells this point from the others, for people."""
    share = [] if point.long_share is None else [f"{100 * point.long_share:g} % long"]
    others = [f"{key.rpartition('.')[2]} {value}" for key, value in point.others]
    return ", ".join([*share, *others]) or "all"


def in_tokens(count: float) -> str:
    """Example: in_tokens(3_850_000) == "3.85 M" """
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f}"


def _accuracy(point: PointResult, mode: str, scale: float | None = None) -> str:
    """Return the mean over seeds with their spread, in percent; scale: times this instead."""
    mean, spread = point.last.accuracy[mode], point.spread(mode)
    text = f"{mean:.1%}" if scale is None else f"{scale * mean:.1f}"
    return f"{text} ± {(scale or 100) * spread:.1f}" if len(point.courses) > 1 else text


def _arms(results: SweepResults) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of the table of arms."""
    modes = results.modes
    header = ["arm", "trained tokens", "with signal"]
    header += [f"{mode} {what}" for what in ("accuracy", "tokens", "acc/k") for mode in modes]
    rows = [
        [label(p.point), in_tokens(p.last.trained_tokens), in_tokens(p.last.signal_tokens)]
        + [_accuracy(p, mode) for mode in modes]
        + [f"{p.last.tokens_mean[mode]:.1f}" for mode in modes]
        # Accuracy per thousand response tokens at evaluation.
        + [_accuracy(p, mode, 1000 / p.last.tokens_mean[mode]) for mode in modes]
        for p in results.points
    ]
    return header, rows


def _against_peak(results: SweepResults, point: PointResult, peak: Peak) -> dict[str, Any]:
    """Return how an arm compares with the long-only peak, and its row of that table."""
    assert results.long_mode is not None
    # The best of many noisy evaluations, as the peak itself is, so both are above what they hold.
    best = max(evaluation.accuracy[results.long_mode] for evaluation in point.mean_course)
    # Within the interval an arm cannot be told from the peak.
    interval = peak.accuracy - peak.half_width
    reached = [results.tokens_to(point.mean_course, goal) for goal in (peak.accuracy, interval)]
    row = [label(point.point), f"{best:.1%}"]
    for tokens in reached:
        # A peak at step 0 takes no tokens, of which there are no percentages.
        share = f" ({tokens / peak.tokens:.0%})" if tokens is not None and peak.tokens else ""
        row.append("not reached" if tokens is None else f"{in_tokens(tokens)}{share}")
    by_seed = [results.tokens_to(course, interval) for course in point.courses.values()]
    row.append(", ".join("-" if tokens is None else in_tokens(tokens) for tokens in by_seed))
    return {
        "label": label(point.point),
        "is_half": point.point.long_share == 0.5,
        "peak": peak,
        "best": best,
        "tokens": reached[0],
        "tokens_to_interval": reached[1],
        "trained_tokens": point.last.trained_tokens,
        "row": row,
    }


def _transfer(results: SweepResults) -> list[list[str]]:
    """Return a row for every arm and mode that the arm does not train."""
    rows: list[list[str]] = []
    for point in results.points:
        first, last = point.mean_course[0], point.last
        for mode in (mode for mode, share in point.shares.items() if share == 0):
            change = 100 * (last.accuracy[mode] - first.accuracy[mode])
            # Of a difference of two independent means.
            interval = 100 * math.hypot(last.half_width[mode], first.half_width[mode])
            row = [label(point.point), mode, f"{first.accuracy[mode]:.1%}", _accuracy(point, mode)]
            rows.append([*row, f"{change:+.1f} ± {interval:.1f}"])
    return rows


def _paper(results: SweepResults) -> list[list[str]]:
    """Return a row for every arm that the paper has, too."""
    rows: list[list[str]] = []
    for point in results.points:
        share, long_only = point.point.long_share, results.long_only(point.point)
        # Tokens can only be compared as shares of the long-only arm's.
        if share in _PAPER and long_only is not None:
            accuracy, tokens = _PAPER[share]
            ours = ", ".join(f"{point.last.accuracy[mode]:.1%} {mode}" for mode in results.modes)
            relative = point.last.trained_tokens / long_only.last.trained_tokens
            theirs = f"{tokens:g} B ({tokens / _PAPER[1.0][1]:.0%})"
            rows.append([label(point.point), ours, f"{relative:.0%}", accuracy, theirs])
    return rows


_TEMPLATES = templates(Path(__file__).parent)
_TEMPLATES.filters["tokens"] = in_tokens
