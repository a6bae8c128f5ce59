"""What instrumentation costs the task manager: with and without `opentelemetry-instrument`, turn by turn.

Two servers of one worker each, set up alike but for the instrumentation, are asked by wrk over loopback, one after the
other, for each handler and round. The instrumented one sends all three signals to a Collector beside it. Given are
requests a second, CPU time a request of the server (which neighbours on the machine disturb least), p50 and p99.
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import tomllib
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from watchpost import packages
from watchpost.artifacts.store import extract
from watchpost.project import PROJECT

BIN = Path(sys.executable).parent
CONNECTIONS, THREADS = 4, 4
TASKS = 50  # in the list: one page of it

#: name -> (path, body of a POST)
HANDLERS = {
    "trivial (404)": ("/nowhere", None),  # the least that is traced: no route, no database, an answer of a few bytes
    "list 50 tasks": ("/api/tasks", None),
    "create a task": ("/api/tasks", {"title": "Water the plants", "notes": "two of them"}),
}

COLLECTOR = """
receivers: {otlp: {protocols: {http: {endpoint: "127.0.0.1:%d"}}}}
exporters: {debug: {verbosity: basic}}
service:
  telemetry: {metrics: {level: none}, logs: {level: warn}}
  pipelines:
    traces: {receivers: [otlp], exporters: [debug]}
    metrics: {receivers: [otlp], exporters: [debug]}
    logs: {receivers: [otlp], exporters: [debug]}
"""

GUNICORN = """
from taskboard.server import *
bind = "127.0.0.1:%d"
workers = 1
worker_class = "gthread"
threads = %d
control_socket_disable = True
"""


@dataclass(frozen=True)
class Result:
    """One run of one handler: requests a second, and the rest in milliseconds."""

    rate: float
    cpu: float
    p50: float
    p99: float


def free_port() -> int:
    """Return a TCP port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def role_environment() -> dict[str, str]:
    """Return the settings of OpenTelemetry that the role taskboard gives, without those of TLS and addresses."""
    text = (PROJECT / "roles/taskboard/tasks/main.yml").read_text()
    found = dict(re.findall(r"^      (OTEL_\w+): ([^\s{>#]+)(?: +#.*)?$", text, re.MULTILINE))
    return {name: value for name, value in found.items() if "ENDPOINT" not in name and "CERT" not in name}


@contextlib.contextmanager
def process(command: list[str | Path], log: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command while the block lasts."""
    with log.open("wb") as output:
        running = subprocess.Popen(command, stdout=output, stderr=output, env=environment, cwd=log.parent)
    try:
        yield running
    finally:
        running.send_signal(signal.SIGTERM)
        running.wait(60)


def wait_for(port: int, running: subprocess.Popen[bytes]) -> None:
    """Wait until a server listens."""
    deadline = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            if running.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"nothing listens on port {port}") from None
            time.sleep(0.1)  # between two questions


@contextlib.contextmanager
def taskboard(work: Path, collector: int | None) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """Run the task manager, instrumented if there is a Collector's port; yield its port and gunicorn's master."""
    home = work / ("instrumented" if collector else "plain")
    # Python takes the application, and so its entry points, for installed.
    info = home / "site" / "taskboard-0.dist-info"
    info.mkdir(parents=True)
    points = tomllib.loads((PROJECT / "app/pyproject.toml").read_text())["project"]["entry-points"]
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: taskboard\nVersion: 0\n")
    lines = [
        line for group, each in points.items() for line in (f"[{group}]", *(f"{k} = {v}" for k, v in each.items()))
    ]
    (info / "entry_points.txt").write_text("\n".join(lines))
    port = free_port()
    (home / "gunicorn.conf.py").write_text(GUNICORN % (port, THREADS))
    environment = {
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "PYTHONPATH": f"{PROJECT / 'app'}:{info.parent}",
        "TASKBOARD_DATABASE_URL": f"sqlite:///{home}/tasks.db",
    }
    command: list[str | Path] = [BIN / "gunicorn", "-c", home / "gunicorn.conf.py", "taskboard.wsgi:app"]
    if collector:
        environment |= role_environment()
        environment |= {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector}", "OTEL_SERVICE_NAME": "bench"}
        command = [BIN / "opentelemetry-instrument", *command]
    with process(command, home / "log", environment) as master:
        wait_for(port, master)
        for number in range(TASKS):
            body = json.dumps({"title": f"Task {number}"}).encode()
            headers = {"Content-Type": "application/json"}
            request = urllib.request.Request(f"http://127.0.0.1:{port}/api/tasks", body, headers)
            urllib.request.urlopen(request, timeout=10).read()  # noqa: S310 - the address is our own
        yield port, master


def cpu_seconds(master: subprocess.Popen[bytes]) -> float:
    """Return the CPU time that the workers of a gunicorn have used so far."""
    ticks = 0
    for worker in Path(f"/proc/{master.pid}/task/{master.pid}/children").read_text().split():
        fields = Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def load(work: Path, port: int, master: subprocess.Popen[bytes], handler: str, seconds: int) -> Result:
    """Ask for one handler as fast as it answers."""
    path, body = HANDLERS[handler]
    script = work / "request.lua"
    script.write_text(
        f"wrk.method = 'POST'\nwrk.body = '{json.dumps(body)}'\nwrk.headers['Content-Type'] = 'application/json'\n"
        if body
        else ""
    )
    before = cpu_seconds(master)
    command = ["wrk", "--latency", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "-s", script]
    said = subprocess.run(
        [*command, f"http://127.0.0.1:{port}{path}"], check=True, capture_output=True, text=True
    ).stdout
    requests = int(found(r"(\d+) requests in", said))
    cpu = 1000 * (cpu_seconds(master) - before) / requests
    if body is None and path == "/api/tasks" and "Non-2xx" in said:
        raise SystemExit(f"not every request was answered: {said}")
    return Result(float(found(r"Requests/sec:\s+([\d.]+)", said)), cpu, percentile("50", said), percentile("99", said))


def found(pattern: str, text: str) -> str:
    """Return what a pattern's group finds; the output of wrk that lacks it is an error."""
    match = re.search(pattern, text)
    if not match:
        raise SystemExit(f"wrk has said nothing like {pattern}: {text}")
    return match[1]


def percentile(which: str, said: str) -> float:
    """Return a percentile of wrk's latencies in milliseconds."""
    number, unit = re.findall(r"^([\d.]+)(us|ms|s)$", found(rf" {which}(?:\.000)?%\s+(\S+)", said))[0]
    return float(number) * {"us": 0.001, "ms": 1, "s": 1000}[unit]


def collector_binary(work: Path) -> Path:
    """Unpack the Collector from the artifact store."""
    command = [sys.executable, "-m", "watchpost", "artifacts", "ensure", "otel_collector", "--json"]
    said = subprocess.run(command, cwd=PROJECT, check=True, stdout=subprocess.PIPE, text=True).stdout
    extract(Path(json.loads(said)["otel_collector"]["path"]), work)
    return next((work / "bin").iterdir())


def show(results: dict[str, tuple[list[Result], list[Result]]]) -> None:
    """Print the medians, and of each round's own ratio the median, the least and the greatest."""
    table = Table(
        "handler", "figure", "plain", "instrumented", "ratio (least to greatest)", title="Cost of instrumentation"
    )
    for handler, (plain, instrumented) in results.items():
        for name, unit in (("rate", "/s"), ("cpu", "ms"), ("p50", "ms"), ("p99", "ms")):
            before, after = ([getattr(result, name) for result in each] for each in (plain, instrumented))
            ratios = sorted(b / a for a, b in zip(before, after, strict=True) if a)
            middle = [f"{statistics.median(each):.3g} {unit}" for each in (before, after)]
            spread = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
            table.add_row(handler if name == "rate" else "", name, *middle, spread)
    Console(width=110).print(table)


def main() -> None:
    """Run the rounds that the command line asks for."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=5, help="times that each server is asked for each handler")
    arguments.add_argument("--seconds", type=int, default=4, help="that each of these lasts")
    options = arguments.parse_args()
    packages.ensure("benchmarks")
    work = Path(tempfile.mkdtemp(prefix="watchpost-bench."))
    try:
        receiver = free_port()
        (work / "collector.yaml").write_text(COLLECTOR % receiver)
        binary = collector_binary(work)
        results: dict[str, tuple[list[Result], list[Result]]] = {handler: ([], []) for handler in HANDLERS}
        with (
            process(
                [binary, f"--config={work / 'collector.yaml'}"], work / "collector.log", dict(os.environ)
            ) as running,
            taskboard(work, None) as plain,
            taskboard(work, receiver) as instrumented,
        ):
            wait_for(receiver, running)
            for number in range(options.rounds + 1):
                for handler, both in results.items():
                    for server, kept in zip((plain, instrumented), both, strict=True):
                        result = load(work, *server, handler, options.seconds)
                        if number:  # the first round warms up
                            kept.append(result)
        complaints = (work / "instrumented/log").read_text()
        if "ERROR" in complaints:
            raise SystemExit(f"the instrumented server complains:\n{complaints[-2000:]}")
        show(results)
    finally:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
