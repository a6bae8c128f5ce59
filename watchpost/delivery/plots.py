"""The report's pictures, as SVG that stands in the page itself."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import matplotlib

matplotlib.use("svg")  # no display, no window

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

from watchpost.ledger import Sent, percentile

#: Text stays text, so that it can be searched and read aloud; ids are the same in each run, so that reports compare.
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "watchpost",
    "font.size": 9,
    "axes.grid": True,
    "grid.alpha": 0.3,
}
SIZE = (8.0, 2.8)  # inches


def _svg(figure: Figure) -> str:
    out = io.StringIO()
    figure.savefig(out, format="svg", bbox_inches="tight", metadata={"Date": None})
    return out.getvalue()[out.getvalue().index("<svg") :]


def _axes() -> tuple[Figure, Axes]:
    figure = Figure(figsize=SIZE)
    return figure, figure.subplots()


def _milliseconds(axis: Axis) -> None:
    """Number an axis of latencies as people write them: 20, 50, 100."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(ScalarFormatter())
    axis.set_minor_formatter(NullFormatter())


def latency_over_time(sent: Sequence[Sent], p95_limit: float | None) -> str:
    """Draw each request at its moment, the errors apart, and the P95 of each tenth of the run (all in seconds)."""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _axes()
        began = min(each.started for each in sent)
        good = [each for each in sent if each.available]
        bad = [each for each in sent if not each.available]
        axes.scatter([e.started - began for e in good], [1000 * e.seconds for e in good], s=6, label="answered")
        if bad:
            axes.scatter(
                [e.started - began for e in bad], [1000 * e.seconds for e in bad], s=18, marker="x", c="C3", label="5xx"
            )
        length = max(each.started for each in sent) - began or 1.0
        middles, values = [], []
        for tenth in range(10):
            part = [e.seconds for e in sent if tenth <= 10 * (e.started - began) / length < tenth + 1]
            if part:
                middles.append((tenth + 0.5) * length / 10)
                values.append(1000 * percentile(part, 0.95))
        axes.plot(middles, values, c="C1", label="P95 of a tenth of the run")
        if p95_limit:
            axes.axhline(1000 * p95_limit, c="C3", ls="--", lw=1, label="limit of P95")
        axes.set_yscale("log")
        _milliseconds(axes.yaxis)
        axes.set_xlabel("seconds since the run began")
        axes.set_ylabel("latency, ms")
        axes.legend(loc="upper right", fontsize=7)
        return _svg(figure)


def latency_by_operation(sent: Sequence[Sent]) -> str:
    """Draw which share of each operation's requests was answered within a time."""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _axes()
        for operation in sorted({each.operation for each in sent}):
            axes.ecdf([1000 * each.seconds for each in sent if each.operation == operation], label=operation)
        axes.set_xscale("log")
        _milliseconds(axes.xaxis)
        axes.set_xlabel("latency, ms")
        axes.set_ylabel("share answered")
        axes.legend(loc="lower right", fontsize=7)
        return _svg(figure)


def burn_down(budgets: dict[str, Sequence[tuple[float, float]]]) -> str:
    """Draw the share of each error budget that is left, over Unix time in seconds."""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _axes()
        began = min(at for points in budgets.values() for at, _ in points)
        for name, points in sorted(budgets.items()):
            axes.plot([(at - began) / 60 for at, _ in points], [100 * left for _, left in points], label=name)
        axes.axhline(0, c="C3", ls="--", lw=1)
        axes.set_xlabel("minutes")
        axes.set_ylabel("error budget left, %")
        axes.legend(loc="lower left", fontsize=7)
        return _svg(figure)
