"""Draw dashboards with matplotlib, from the answers to their own queries: pictures for where there is no browser."""

from __future__ import annotations

import datetime
import io
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.dates import DateFormatter, date2num
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from watchpost.dashboards import pages
from watchpost.dashboards.look import GRID_WIDTH
from watchpost.dashboards.run import Answer, Reader
from watchpost.verify_grafana import AskError, lines_of

#: Inches of a cell of Grafana's grid.
CELL = (0.62, 0.34)
LINE = 12.0  # points from one row of a table to the next
INK, PAPER, PANEL = "#d8d9da", "#111217", "#181b1f"
COLORS = ["#73bf69", "#f2cc0c", "#5794f2", "#ff9830", "#f2495c", "#b877d9", "#8ab8ff", "#ffa6b0", "#96d98d", "#ffee52"]
NAMED = {
    "green": "#73bf69",
    "red": "#f2495c",
    "orange": "#ff9830",
    "yellow": "#f2cc0c",
    "blue": "#5794f2",
    "gray": "#8e8e8e",
}
Series = list[tuple[str, list[tuple[float, float]]]]


def written(value: float, unit: str) -> str:
    """Write a value with its unit, as short as Grafana does."""
    if unit == "percentunit":
        return f"{value * 100:.3g} %"
    if unit == "ms":
        value, unit = value / 1000, "s"
    if unit == "s":
        for size, name in ((86400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s")):
            if abs(value) >= size:
                return f"{value / size:.3g} {name}"
        return f"{value * 1000:.3g} ms" if value else "0 s"
    suffix = {"d": " d", "reqps": " req/s", "ops": " ops/s", "cps": " /s", "bytes": "B", "Bps": "B/s"}.get(unit, "")
    for size, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g} {name}{suffix.lstrip()}"
    return f"{value:.3g}{suffix}"


def named(legend: str, labels: dict[str, str]) -> str:
    """Return a series' name, as its query's legend makes it."""
    if legend in ("", "__auto"):
        return ", ".join(value for key, value in labels.items() if key != "__name__" and value) or labels.get(
            "__name__", ""
        )
    return re.sub(r"\{\{(\w+)\}\}", lambda found: labels.get(found[1], ""), legend)


def series_of(panel: dict[str, Any], answers: list[Answer]) -> Series:
    """Return the series of all of a panel's answers, by name."""
    found: Series = []
    for target, answer in zip(panel.get("targets", []), answers, strict=False):
        found += [(named(target.get("legendFormat") or "", labels), points) for labels, points in answer.series()]
    return found


def color_of(value: float, steps: list[dict[str, Any]]) -> str:
    """Return the colour that a value has by the panel's thresholds."""
    reached = [step["color"] for step in steps if step.get("value") is None or value >= step["value"]]
    return NAMED.get(reached[-1], INK) if reached else INK


def _moment(seconds: float) -> float:
    """Return a moment (Unix seconds, shown in UTC) as matplotlib counts it."""
    return float(date2num(datetime.datetime.fromtimestamp(seconds, datetime.UTC)))  # type: ignore[no-untyped-call]  # likewise


def draw_lines(axes: Axes, panel: dict[str, Any], answers: list[Answer]) -> None:
    """Draw values over time, thresholds and exemplars."""
    defaults = panel["fieldConfig"]["defaults"]
    unit = defaults.get("unit", "none")
    fixed = {
        override["matcher"]["options"]: override["properties"][0]["value"]["fixedColor"]
        for override in panel["fieldConfig"]["overrides"]
    }
    series = series_of(panel, answers)[:12]
    for number, (name, points) in enumerate(series):
        moments = [_moment(moment) for moment, _ in points]
        color = NAMED.get(fixed.get(name, ""), COLORS[number % len(COLORS)])
        axes.plot(
            moments,
            [value for _, value in points],
            lw=1.1,
            color=color,
            label=name[:36] if number < 6 else None,
            marker="." if len(points) < 3 else "",
        )
    for answer in answers:
        shown = [row for row in answer.exemplars() if isinstance(row.get("Value"), (int, float))]
        moments = [_moment(row["Time"] / 1000) for row in shown]
        axes.scatter(moments, [row["Value"] for row in shown], s=7, color="#73bf69", marker="D", zorder=3)
    for step in (defaults.get("thresholds") or {}).get("steps", [])[1:]:
        if axes.get_ylim()[1] >= step["value"] / 2:
            axes.axhline(step["value"], color=NAMED.get(step["color"], INK), ls="--", lw=0.8)
    axes.xaxis.set_major_formatter(DateFormatter("%H:%M"))  # type: ignore[no-untyped-call]  # it has no types
    axes.yaxis.set_major_formatter(lambda value, _: written(value, unit))
    if defaults.get("min") == 0:
        axes.set_ylim(bottom=0)
    axes.tick_params(labelsize=6, colors=INK)
    axes.grid(color="#2c3235", lw=0.5)
    if series:
        axes.legend(
            fontsize=5.5,
            ncols=3 if panel["gridPos"]["w"] > 8 else 2,
            loc="upper center",
            bbox_to_anchor=(0.5, -0.12),
            frameon=False,
            labelcolor=INK,
        )


def draw_numbers(axes: Axes, panel: dict[str, Any], answers: list[Answer]) -> None:
    """Draw the last value of each series, large, in its colour."""
    defaults = panel["fieldConfig"]["defaults"]
    steps = defaults["thresholds"]["steps"]
    words = {key: value for mapping in defaults.get("mappings") or [] for key, value in mapping["options"].items()}
    series = series_of(panel, answers)
    axes.axis("off")
    if not series:
        axes.text(0.5, 0.5, defaults.get("noValue", "no data"), color=INK, ha="center", va="center", fontsize=10)
    width, height = room(panel)
    for number, (name, points) in enumerate(series):
        value = points[-1][1]
        word = words.get(f"{value:g}", {}).get("text") or written(value, defaults["unit"])
        x = (number + 0.5) / len(series)
        size = max(9, min(24, 0.25 * height, 1.2 * width / len(series) / len(word)))
        axes.text(x, 0.55, word, color=color_of(value, steps), ha="center", va="center", fontsize=size, weight="bold")
        if len(series) > 1:
            fits = int(width / len(series) / 4)
            axes.text(x, 0.12, name[:fits], color=INK, ha="center", fontsize=6.5)


def draw_bars(axes: Axes, panel: dict[str, Any], answers: list[Answer]) -> None:
    """Draw one bar a series."""
    defaults = panel["fieldConfig"]["defaults"]
    series = series_of(panel, answers)[:14][::-1]
    values = [points[-1][1] for _, points in series]
    axes.barh(
        [name[:28] for name, _ in series], values, color=[color_of(v, defaults["thresholds"]["steps"]) for v in values]
    )
    for number, value in enumerate(values):
        axes.text(value, number, " " + written(value, defaults["unit"]), va="center", color=INK, fontsize=6)
    axes.tick_params(labelsize=6, colors=INK)
    axes.xaxis.set_visible(False)
    axes.set_xlim(0, max([defaults.get("max") or 0, *(1.2 * value for value in values), 0.001]))


def rows_of(panel: dict[str, Any], answers: list[Answer]) -> list[list[str]]:
    """Return the heading and the rows of a table: of metrics by the panel's columns, or of traces that were found."""
    if any(answer.found for answer in answers):
        found = answers[0].found
        head = ["Trace", "Service", "Name", "Duration"]
        return [
            head,
            *(
                [
                    t["traceID"][:12],
                    t.get("rootServiceName", ""),
                    t.get("rootTraceName", ""),
                    f"{t.get('durationMs', 0)} ms",
                ]
                for t in found
            ),
        ]
    organized = next((t["options"] for t in panel.get("transformations") or [] if t["id"] == "organize"), None)
    if organized is None:
        return []
    merged: dict[tuple[str, ...], dict[str, Any]] = {}
    for target, answer in zip(panel["targets"], answers, strict=False):
        for labels, points in answer.series():
            known = {key: text for key, text in labels.items() if key in organized["renameByName"]}
            merged.setdefault(tuple(known.values()), {}).update(known | {f"Value #{target['refId']}": points[-1][1]})
    units = {o["matcher"]["options"]: o["properties"][0]["value"] for o in panel["fieldConfig"]["overrides"]}
    columns = sorted(organized["indexByName"], key=organized["indexByName"].get)
    heads = [organized["renameByName"][column] for column in columns]
    body = [
        [
            written(row[c], units[h]) if isinstance(row.get(c), (int, float)) else str(row.get(c) or "")
            for c, h in zip(columns, heads, strict=True)
        ]
        for row in merged.values()
    ]
    return [heads, *body]


def room(panel: dict[str, Any]) -> tuple[float, float]:
    """Return width and height of a panel, in points."""
    return panel["gridPos"]["w"] * CELL[0] * 72, panel["gridPos"]["h"] * CELL[1] * 72


def draw_nothing(axes: Axes, panel: dict[str, Any]) -> None:
    """Say that there is nothing to draw, in the panel's own words."""
    empty = panel["fieldConfig"]["defaults"].get("noValue") or "no data"
    axes.text(0.5, 0.5, empty, color="#8e8e8e", ha="center", va="center", fontsize=8)


def draw_table(axes: Axes, panel: dict[str, Any], answers: list[Answer]) -> None:
    """Draw a table: as many rows as there is room for, columns as wide as their longest cell asks for."""
    axes.axis("off")
    table = rows_of(panel, answers)
    if len(table) < 2:
        return draw_nothing(axes, panel)
    shown = table[: int(room(panel)[1] / LINE) - 2]
    sizes = [min(48, max(len(row[i]) for row in shown)) + 2 for i in range(len(table[0]))]
    for number, row in enumerate(shown):
        for i, cell in enumerate(row):
            x, y = sum(sizes[:i]) / sum(sizes), 1 - number * LINE / (room(panel)[1] - 1.6 * CELL[1] * 72)
            axes.text(x, y, cell[: sizes[i] - 2], color=INK if number else "#8ab8ff", va="top", fontsize=7)
    return None


def draw_logs(axes: Axes, panel: dict[str, Any], answers: list[Answer]) -> None:
    """Draw log lines, each as far as it fits, in the colour of its level."""
    axes.axis("off")
    found = [line for answer in answers for frame in answer.frames for line in lines_of(frame)]
    if not found:
        return draw_nothing(axes, panel)
    width, height = room(panel)
    for number, line in enumerate(found[: int(height / LINE) - 2]):
        level = line.labels.get("detected_level", "")
        text = textwrap.shorten(f"{level:7} {' '.join(line.body.split())}", int(width / 4.1), placeholder="…")
        color = {"error": NAMED["red"], "warn": NAMED["yellow"]}.get(level, INK)
        y = 1 - number * LINE / (height - 1.6 * CELL[1] * 72)
        axes.text(0, y, text, color=color, va="top", family="monospace", fontsize=6.5)
    return None


def draw_map(axes: Axes, panel: dict[str, Any], answers: list[Answer]) -> None:
    """Draw who calls whom, callers on the left, with calls a second on the arrows."""
    axes.axis("off")
    edges: dict[tuple[str, str], float] = {}
    for labels, points in answers[0].series():  # first of requests, then of failures and seconds, which are not drawn
        edges.setdefault((labels["client"], labels["server"]), points[-1][1])
    if not edges:
        return draw_nothing(axes, panel)
    column = {node: 0 for edge in edges for node in edge}
    for _ in column:  # as often as the longest way there can be
        column |= {server: max(column[server], column[client] + 1) for client, server in edges if client != server}
        column = {node: min(place, len(column) - 1) for node, place in column.items()}
    place = {}
    for left in sorted(set(column.values())):
        beside = [node for node, at in column.items() if at == left]
        for number, node in enumerate(beside):
            place[node] = ((left + 0.5) / (max(column.values()) + 1), (number + 0.5) / len(beside))
    for (client, server), rate in edges.items():
        (x, y), (to_x, to_y) = place[client], place[server]
        line = {"arrowstyle": "->", "color": "#8e8e8e", "shrinkA": 22, "shrinkB": 22}
        axes.annotate("", (to_x, to_y), (x, y), arrowprops=line)
        text = written(rate, "reqps")
        axes.text((x + to_x) / 2, (y + to_y) / 2, f"{text}\n", color=INK, ha="center", va="center", fontsize=7)
    for node, (x, y) in place.items():
        axes.scatter([x], [y], s=700, facecolor=PANEL, edgecolor=NAMED["green"], linewidth=2, zorder=3)
        axes.annotate(
            node, (x, y), (0, -26), textcoords="offset points", color=INK, ha="center", fontsize=8, weight="bold"
        )
    axes.set(xlim=(0, 1), ylim=(0, 1))
    return None


def draw_list(axes: Axes, _: dict[str, Any], answers: list[Answer]) -> None:
    """Draw a list of dashboards."""
    axes.axis("off")
    titles = "\n".join(f"• {found['title']}" for found in answers[0].found)
    axes.text(0, 1, titles, color="#8ab8ff", va="top", fontsize=8, linespacing=1.6)


DRAWN = {
    "timeseries": draw_lines,
    "stat": draw_numbers,
    "bargauge": draw_bars,
    "table": draw_table,
    "logs": draw_logs,
    "nodeGraph": draw_map,
    "dashlist": draw_list,
}


def draw_dashboard(reader: Reader, uid: str) -> Figure:
    """Return the drawing of a dashboard, its panels where Grafana has them."""
    dashboard = reader.dashboard(uid)
    values = reader.first_values(dashboard)
    high = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in dashboard["panels"]) + 2
    figure = Figure(figsize=(GRID_WIDTH * CELL[0], high * CELL[1]), facecolor=PAPER)
    figure.text(
        0.01,
        1 - 0.6 / high,
        f"{dashboard['title']}: {dashboard['description']}",
        color=INK,
        fontsize=10,
        weight="bold",
        va="center",
    )
    figure.text(
        0.99,
        0.3 / high,
        "drawn from the dashboard's queries; not a picture of Grafana",
        color="#8e8e8e",
        fontsize=6,
        ha="right",
    )
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        left, width = place["x"] / GRID_WIDTH, place["w"] / GRID_WIDTH
        top = 1 - (place["y"] + 1.2) / high
        if panel["type"] == "row":
            figure.text(left + 0.01, top - 0.6 / high, panel["title"], color="#8ab8ff", fontsize=9, va="center")
            continue
        timed = panel["type"] == "timeseries"
        bottom = top - place["h"] / high
        inner = (
            left + (0.034 if timed or panel["type"] == "bargauge" else 0.008),
            bottom + (1.6 if timed else 0.4) / high,
        )
        size = (
            width - (0.042 if timed or panel["type"] == "bargauge" else 0.016),
            (place["h"] - (3.0 if timed else 1.6)) / high,
        )
        if panel["type"] == "bargauge":
            inner, size = (left + 0.09, inner[1]), (width - 0.1, size[1])
        figure.add_artist(
            Rectangle(
                (left + 0.002, bottom + 0.1 / high), width - 0.004, (place["h"] - 0.2) / high, color=PANEL, zorder=-1
            )
        )
        axes = figure.add_axes((*inner, *size), facecolor=PANEL)
        for spine in axes.spines.values():
            spine.set_color("#2c3235")
        figure.text(left + 0.008, top - 0.6 / high, panel["title"], color=INK, fontsize=7, weight="bold", va="center")
        try:
            answers = reader.panel(panel, values)
        except AskError as error:  # the others are worth a picture all the same
            axes.axis("off")
            axes.text(0, 0.5, textwrap.fill(str(error), 60), color=NAMED["red"], va="center", fontsize=7)
            continue
        DRAWN[panel["type"]](axes, panel, answers)
    return figure


def draw_all(reader: Reader, directory: Path) -> Iterator[Path]:
    """Write `<uid>.png` of every dashboard into a directory; yield each file."""
    directory.mkdir(parents=True, exist_ok=True)
    for page in pages():
        file = directory / f"{page.uid}.png"
        drawn = io.BytesIO()
        draw_dashboard(reader, page.uid).savefig(drawn, dpi=80)
        Image.open(drawn).convert("RGB").quantize(48).save(file, optimize=True)  # a third of the bytes
        yield file
