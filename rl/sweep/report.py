"""The report of a sweep: its pictures, report.md, report.html and results.json."""

import base64
import json
import math
from dataclasses import replace
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import Any

from markdown_it import MarkdownIt
from rich.table import Table

from rl.run.files import write_text
from rl.run.templates import templates
from rl.show.page import framed
from rl.sweep.arms import Point, Published
from rl.sweep.picture import draw_curves, draw_sources, draw_sweep
from rl.sweep.results import Peak, PointResult, SweepResults

PICTURE, CURVES, SOURCES = "ratio.png", "curves.png", "sources.png"


def write_report(root: Path, results: SweepResults, published: Published | None = None) -> Path:
    """Write everything into the sweep's directory; returns the page to open."""
    draw_sweep(root / PICTURE, root.name, results)
    pictures = [PICTURE]
    if results.points[0].curves:
        draw_curves(root / CURVES, root.name, results)
        pictures.append(CURVES)
    if results.sources:
        draw_sources(root / SOURCES, root.name, results)
        pictures.append(SOURCES)
    write_text(root / "results.json", json.dumps(results.as_json(), indent=1) + "\n")
    text = report(root.name, results, published)
    write_text(root / "report.md", text)
    # The text holds names that people chose, so no HTML in it may become HTML of the page.
    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)
    for picture in pictures:
        # The Markdown names the picture beside it; the page holds it, so that it can be sent alone.
        encoded = base64.b64encode((root / picture).read_bytes()).decode()
        body = body.replace(f'src="{picture}"', f'src="data:image/png;base64,{encoded}"')
    page = root / "report.html"
    write_text(page, framed(root.name, body))
    return page


def report(name: str, results: SweepResults, published: Published | None = None) -> str:
    """Return the report as Markdown."""
    header, arms = _arms(results)
    with_peak = [(p, peak) for p in results.points if (peak := results.peak(p.point)) is not None]
    # Arms that vary something beside the share have a peak for each value of it.
    peaks = {", ".join(p.point.besides): peak for p, peak in with_peak}
    seeds = {label(p.point): ", ".join(map(str, p.courses)) for p in results.points}
    return _TEMPLATES.get_template("report.md.j2").render(
        name=name,
        picture=PICTURE,
        curves_picture=CURVES,
        sources_picture=SOURCES,
        arms_header=header,
        arms=arms,
        peaks=peaks,
        against_peak=[_against_peak(results, p, peak) for p, peak in with_peak],
        transfer=_transfer(results),
        against_first=_against_first(results),
        modes=[*results.modes],
        labels=list(seeds),
        by_source={mode: _by_source(results, mode) for mode in results.modes if results.sources},
        metrics=[*results.points[0].curves],
        curves=[
            [label(p.point), *(_ends(p, metric) for metric in p.curves)] for p in results.points
        ],
        published=published,
        beside=published and _beside(results, published),
        half_width=max(max(p.last.half_width.values()) for p in results.points),
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
    return ", ".join(point.labels) or "all"


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
    """Return a row for every arm and mode that the arm trains less than another does, or not."""
    rows: list[list[str]] = []
    for point in results.points:
        first, last = point.mean_course[0], point.last
        for mode, share in point.shares.items():
            alone = results.alone(mode, point.point)
            if share == 1 or (share > 0 and alone is None):
                continue
            gains = point.gains(mode)
            # Of a difference of two independent means.
            interval = 100 * math.hypot(last.half_width[mode], first.half_width[mode])
            change = f"{100 * fmean(gains):+.1f} ± {interval:.1f}"
            row = [label(point.point), mode, f"{share:.0%}", f"{first.accuracy[mode]:.1%}"]
            row += [_accuracy(point, mode), change, ", ".join(f"{100 * g:+.1f}" for g in gains)]
            # A mode that gains nothing by its own training has no gain to take a share of.
            whole = fmean(alone.gains(mode)) if alone is not None else 0.0
            rows.append([*row, f"{fmean(gains) / whole:.0%}" if whole > 0 else "-"])
    return rows


def _against_first(results: SweepResults) -> list[list[str]]:
    """Return a row for every arm of a variant but the first, and a column for every mode."""
    rows: list[list[str]] = []
    for point in (p for p in results.points if p.point.variant != results.points[0].point.variant):
        mine = point.point
        like = replace(mine, name="", variant=results.points[0].point.variant)
        base = next((p for p in results.points if replace(p.point, name="") == like), None)
        if base is None:
            continue
        row = [label(mine)]
        for mode in results.modes:
            change = point.last.accuracy[mode] - base.last.accuracy[mode]
            interval = math.hypot(point.last.half_width[mode], base.last.half_width[mode])
            seeds = [
                course[-1].accuracy[mode] - base.courses[seed][-1].accuracy[mode]
                for seed, course in point.courses.items()
                if seed in base.courses
            ]
            by_seed = ", ".join(f"{100 * each:+.1f}" for each in seeds)
            row.append(f"{100 * change:+.1f} ± {100 * interval:.1f} ({by_seed})")
        rows.append(row)
    return rows


def _by_source(results: SweepResults, mode: str) -> list[list[str]]:
    """Return a row for every source of the data, and in it what became of a mode in every arm."""
    rows: list[list[str]] = []
    for source in results.sources:
        row = [source]
        for point in results.points:
            first, last = (
                e.of_source[mode].get(source) for e in (point.mean_course[0], point.last)
            )
            if first is None or last is None:
                row.append("-")
                continue
            # Of a difference of two independent means.
            change, interval = last[0] - first[0], math.hypot(first[1], last[1])
            ends = f"{first[0]:.1%} → {last[0]:.1%}"
            row.append(f"{ends} ({100 * change:+.1f} ± {100 * interval:.1f})")
        rows.append(row)
    return rows


def _ends(point: PointResult, metric: str) -> str:
    """Return what a metric was at the beginning and at the end."""
    if (ends := point.ends(metric)) is None:
        return "-"
    first, last, half = ends
    spread = f" ± {half:.2g}" if len(point.courses) > 1 else ""
    return f"{first:.3g} → {last:.3g}{spread}"


def _beside(results: SweepResults, published: Published) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of the arms that were published, too, ours beside theirs."""
    columns = [*dict.fromkeys(chain(*published.points.values()))]
    # A column of theirs that is named as a metric has ours beside it.
    shared = [column for column in columns if column in results.points[0].curves]
    header = ["arm", "accuracy here", "tokens here", *(f"{column} here" for column in shared)]
    rows: list[list[str]] = []
    for point in results.points:
        found = [published.points[n] for n in point.point.labels if n in published.points]
        if not found:
            continue
        tokens, long_only = in_tokens(point.last.trained_tokens), results.long_only(point.point)
        if long_only is not None:
            # Tokens of other models can only be compared as shares of the long-only arm's.
            tokens = f"{point.last.trained_tokens / long_only.last.trained_tokens:.0%}"
        accuracy = ", ".join(f"{point.last.accuracy[mode]:.1%} {mode}" for mode in results.modes)
        ours = [label(point.point), accuracy, tokens, *(_ends(point, name) for name in shared)]
        rows.append([*ours, *(found[0].get(column, "-") for column in columns)])
    return [*header, *(f"{column} there" for column in columns)], rows


_TEMPLATES = templates(Path(__file__).parent)
_TEMPLATES.filters["tokens"] = in_tokens
