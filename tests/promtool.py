"""The real promtool: what Prometheus makes of rules and series, without waiting for the time to pass."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from watchpost.artifacts.store import extract

PROJECT = Path(__file__).resolve().parent.parent


def program(directory: Path) -> Path:
    """Unpack promtool of the artifact store."""
    done = subprocess.run(
        [sys.executable, "-m", "watchpost", "artifacts", "ensure", "prometheus", "--json"],
        cwd=PROJECT, stdout=subprocess.PIPE, check=True,
    )  # fmt: skip
    extract(Path(json.loads(done.stdout)["prometheus"]["path"]), directory, "bin/promtool")
    return directory / "bin/promtool"


def run(promtool: Path, *arguments: str | Path) -> str:
    """Run it; return what it says, with "FAILED" in front when it fails."""
    done = subprocess.run([promtool, *arguments], capture_output=True, text=True, check=False)
    return ("FAILED " if done.returncode else "") + done.stdout + done.stderr


def evaluate(
    promtool: Path, directory: Path, groups: Sequence[Mapping[str, Any]], tests: Sequence[Mapping[str, Any]]
) -> str:
    """Run tests of rules; return what promtool says."""
    (directory / "rules.yml").write_text(json.dumps({"groups": groups}))  # JSON is YAML, and faster
    [interval] = {group["interval"] for group in groups}  # promtool takes no notice of the groups' own
    content = {"rule_files": ["rules.yml"], "evaluation_interval": interval, "tests": tests}
    (directory / "test.yml").write_text(json.dumps(content))
    return run(promtool, "test", "rules", directory / "test.yml")


def ask(
    promtool: Path,
    directory: Path,
    groups: Sequence[Mapping[str, Any]],
    input_series: Mapping[str, Iterable[float | None]],
    questions: Iterable[tuple[str, int]],
    interval: int = 1,
) -> list[float | None]:
    """Return what single-valued expressions come to at given seconds, None for nothing.

    promtool only compares, but tells what it has found where nothing was expected.
    """
    questions = list(questions)
    test = {
        "interval": f"{interval}s",
        "input_series": [{"series": name, "values": series(samples)} for name, samples in input_series.items()],
        "promql_expr_test": [{"expr": f"sum({expr})", "eval_time": f"{at}s"} for expr, at in questions],
    }
    said = evaluate(promtool, directory, groups, [test])
    found = re.findall(r"expr: (\".*\"), time: (\S+),\n\s*exp: nil\n\s*got: \{\} (\S+)", said)
    assert "SUCCESS" in said or found, said
    values = {(json.loads(expr), _seconds(time)): float(value) for expr, time, value in found}
    return [values.get((f"sum({expr})", at)) for expr, at in questions]


def _seconds(time: str) -> int:
    """Read a length of time such as 1h2m3s."""
    return sum(
        int(n) * {"d": 86_400, "h": 3600, "m": 60, "s": 1}[unit] for n, unit in re.findall(r"(\d+)([dhms])", time)
    )


def series(samples: Iterable[float | None]) -> str:
    """Write the samples of a series in promtool's short form; None is a sample that is missing."""
    samples = list(samples)
    parts, at = [], 0
    while at < len(samples):
        first = samples[at]
        end = at + 1
        if first is None:
            while end < len(samples) and samples[end] is None:
                end += 1
            parts.append(f"_x{end - at}")
        elif end < len(samples) and (second := samples[end]) is not None:
            step = second - first
            while end < len(samples) and samples[end] is not None and samples[end] - samples[end - 1] == step:  # type: ignore[operator]
                end += 1
            parts.append(f"{first:.12g}{step:+.12g}x{end - at - 1}")
        else:
            parts.append(f"{first:.12g}")
        at = end
    return " ".join(parts)


def counter(increments: Iterable[float]) -> list[float]:
    """The samples of a counter that begins with 0: one more than there are increments."""
    samples = [0.0]
    for increment in increments:
        samples.append(samples[-1] + increment)
    return samples
