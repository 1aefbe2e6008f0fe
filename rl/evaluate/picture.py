"""accuracy.png of an evaluation: accuracy against length, a point per mode.

Where the policy chooses in some mode, also what can be had between the two ways to answer: by an
oracle that lets the prompts reason that gain most, and by a coin.

Other evaluations beside it that asked the same prompts the same way, of other steps or models, are
shown fainter: before and after in one picture.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, PercentFormatter, StrMethodFormatter

from rl.run.pictures import GREY, legend_above, mode_colors, panel, save


def draw_accuracy(root: Path) -> Path:
    """Draw the evaluation in `root` from its result.json, with those beside it that compare."""
    own = json.loads((root / "result.json").read_text(encoding="utf-8"))
    figure = Figure(figsize=(10, 6.5), dpi=120, facecolor="white")
    axes = figure.subplots()
    figure.subplots_adjust(left=0.08, right=0.97, top=0.84, bottom=0.11)
    colors = mode_colors(own["modes"])
    for other in _comparable(root, own):
        for mode, figures in other["modes"].items():
            if mode in colors:
                at = figures["tokens_mean"], figures["accuracy"]
                style = {"color": colors[mode], "alpha": 0.45, "markersize": 8, "linewidth": 1.2}
                axes.errorbar(*at, figures["half_width"], fmt="o", capsize=3, zorder=3, **style)
                _label(axes, *at, _name(other["policy"]), GREY)
    for mode, figures in own["modes"].items():
        (x, y), color = (figures["tokens_mean"], figures["accuracy"]), colors[mode]
        style = {"color": color, "markersize": 11, "markeredgecolor": "white", "zorder": 5}
        axes.errorbar(x, y, figures["half_width"], color=color, linewidth=2, capsize=5, zorder=4)
        axes.plot(x, y, "o", label=mode, **style)
        # A ladder of short strokes above the point: what sampling more often would reach.
        if ladder := {int(k): share for k, share in figures["pass_at"].items() if int(k) > 1}:
            top = max(ladder.values())
            axes.plot([x, x], [y, top], color=color, alpha=0.3, linewidth=1.5)
            strokes = {"color": color, "alpha": 0.6, "markersize": 16}
            axes.plot([x] * len(ladder), list(ladder.values()), "_", **strokes)
            _label(axes, x, top, f"pass@{max(ladder)}", color, above=True)
    if points := own.get("choosing", {}).get("frontier"):
        tokens, accuracy = ([point[key] for point in points] for key in ("tokens", "accuracy"))
        style = {"color": GREY, "linewidth": 1.4, "zorder": 2}
        axes.plot(tokens, accuracy, label="oracle: the hardest x % reason", **style)
        mixed = [
            [(1 - point["share"]) * of[0] + point["share"] * of[-1] for point in points]
            for of in (tokens, accuracy)
        ]
        axes.plot(*mixed, linestyle=(0, (2, 2)), label="coin: any x % reason", **style)
    _finish(axes, own)
    return save(figure, root / "accuracy.png")


def _comparable(root: Path, own: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The results of other evaluations beside `root` that asked the same prompts the same way."""

    # Only points of the same prompts and the same sampling can be compared by eye.
    def conditions(result: Mapping[str, Any]) -> list[Any]:
        sampling = [result["settings"][key] for key in ("temperature", "top_p", "seed", "modes")]
        return [result["task"], result["split"], result["n"], sampling]

    # `result.json` is a common name, so the other two files of an evaluation must lie beside it.
    results = [
        json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(root.parent.glob("*/result.json"))
        if path.parent.name != root.name
        and (path.parent / "settings.json").is_file()
        and (path.parent / "samples.jsonl").is_file()
    ]
    return [result for result in results if conditions(result) == conditions(own)]


def _name(policy: Mapping[str, Any]) -> str:
    if policy["kind"] == "checkpoint":
        return f"step {policy['step']}"
    return str(policy["served_name"] if policy["kind"] == "endpoint" else Path(policy["path"]).name)


def _label(axes: Axes, x: float, y: float, text: str, color: str, above: bool = False) -> None:
    offset, align = ((0, 8), "center") if above else ((10, -3), "left")
    axes.annotate(
        text, (x, y), offset, textcoords="offset points", ha=align, fontsize=11, color=color
    )


def _finish(axes: Axes, own: Mapping[str, Any]) -> None:
    settings = own["settings"]
    split = "held-out" if own["split"] == "heldout" else "training"
    responses = "1 response" if own["k"] == 1 else f"{own['k']} responses"
    sampling = f"temperature {settings['temperature']:g}" if settings["temperature"] else "greedy"
    panel(axes, _name(own["policy"]), "tokens per response", ticks="both")
    subtitle = f"{own['n']} {split} prompts, {responses} each, {sampling}"
    # At the height of the title: the legend below them may be as wide as the panel.
    at = {"transform": axes.transAxes, "ha": "right"}
    axes.text(1, 1.085, subtitle, fontsize=12, color=GREY, **at)
    # Lengths of modes differ by a factor of ten and more.
    axes.set_xscale("log")
    axes.margins(x=0.25)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    # The whole range, so that pictures of two evaluations can be compared.
    axes.set_ylim(0, 1.04)
    axes.set_ylabel("accuracy", fontsize=12, color=GREY)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    legend_above(axes)
