"""share.json as pictures: share_one.png, share_four.png, share_steps.png. Needs matplotlib."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no screen

from matplotlib import pyplot  # only now is the back-end chosen

_DPI = 80
_INK = {"dpi": _DPI, "metadata": {"Software": None}}


def one(result: dict[str, Any], path: Path) -> None:
    """Mean and 99th percentile of the error by share, a line for each load."""
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4), sharex=True)
    for name in dict.fromkeys(each["load"] for each in result["one"]):
        mine = [each for each in result["one"] if each["load"] == name]
        shares = [each["share"] for each in mine]
        window = f"{mine[0]['window_s']:g} s"
        axes[0].plot(shares, [each["mean_error_points"] for each in mine], marker=".", label=f"{name} ({window})")
        axes[1].plot(shares, [each["p99_100ms_points"] for each in mine], marker=".", label=name)
    axes[0].axhline(result["bars"]["one_mean_error_points"]["bar"], color="black", linestyle=":", label="bar")
    axes[0].set(title="One container: mean error", xlabel="share asked for, percent", ylabel="points")
    axes[1].set(title="99th percentile over 100 ms", xlabel="share asked for, percent", ylabel="points (log)")
    axes[1].set_yscale("log")
    axes[0].legend(fontsize=7)
    figure.suptitle("simulated GPU", fontsize=8)
    _save(figure, path)


def four(result: dict[str, Any], path: Path) -> None:
    """What each of four had, beside what it asked for."""
    groups = result["four"]
    figure, axes = pyplot.subplots(figsize=(11, 0.6 * len(groups) + 1.5))
    labels = []
    for row, group in enumerate(groups):
        left = 0.0
        for number, (asked, got) in enumerate(zip(group["shares"], group["containers"], strict=True)):
            axes.barh(row, got["mean_percent"], left=left, color=f"C{number}", height=0.6)
            axes.text(left + 0.5, row, f"{got['mean_percent']:.1f} of {asked}", va="center", fontsize=7, color="white")
            left += got["mean_percent"]
        labels.append(f"{group['load']}\nJain {group['jain']:.3f}")
    axes.set_yticks(range(len(groups)), labels, fontsize=7)
    axes.invert_yaxis()
    axes.axvline(100, color="black", linestyle=":")
    axes.set(title="Four containers that all want more: percent of the simulated GPU", xlabel="percent")
    _save(figure, path)


def steps(result: dict[str, Any], path: Path) -> None:
    """A live change of the share, and an owner that comes back."""
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4))
    for each in result["steps"]:
        times = [1000 * number / len(each["percent"]) for number in range(len(each["percent"]))]
        settled = f"{each['settled_ms'][0]:g} ms"
        axes[0].plot(times, each["percent"], label=f"{each['from']} to {each['to']} percent, settled after {settled}")
    axes[0].set(title="vgpu set --cores", xlabel="ms since the change", ylabel="percent in 10 ms")
    back = result["owner_returns"]
    for name, series in zip(("soft, 30 percent", "owner, 70 percent"), back["percent"], strict=True):
        times = [back["tick_ms"] * (number - back["idle_ticks"]) for number in range(len(series))]
        axes[1].plot(times, series, label=name)
    axes[1].axvline(0, color="black", linestyle=":", label=f"owner goes on; settled after {back['returned_ms']:g} ms")
    axes[1].set(title="Idle time borrowed and given back", xlabel="ms", ylabel="percent in 10 ms")
    for each in axes:
        each.set_ylim(-5, 155)
        each.legend(fontsize=7, loc="upper right")
    figure.suptitle("simulated GPU", fontsize=8)
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, **_INK)
    pyplot.close(figure)


def draw(result: dict[str, Any], folder: Path) -> None:
    for drawing in (one, four, steps):
        drawing(result, folder / f"share_{drawing.__name__}.png")


if __name__ == "__main__":  # python -m benchmarks.share_plot FOLDER
    draw(json.loads((Path(sys.argv[1]) / "share.json").read_text()), Path(sys.argv[1]))
