"""The real Collector with the redaction that the role gives it, on loopback: OTLP in, what came out of it back."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml

from watchpost.artifacts.store import extract

PROJECT = Path(__file__).resolve().parent.parent
ROLE = PROJECT / "roles/otel_collector"
STARTED = 30  # seconds until it listens, on a busy machine


def plugin():
    """The role's filter plugin, as a module."""
    spec = importlib.util.spec_from_file_location("watchpost_redaction", ROLE / "filter_plugins/watchpost_redaction.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def settings(**changed: Any) -> dict[str, Any]:
    """What the plugin gets from the role, with some variables changed."""
    variables = yaml.safe_load((PROJECT / "group_vars/all/redaction.yml").read_text())
    internal = yaml.safe_load((ROLE / "vars/main.yml").read_text())
    names = {"ids", "known_keys", "address_keys", "url_keys", "sql_keys"}
    lists = {name: internal[f"__otel_collector_redaction_{name}"] for name in names}
    assert set(internal["__otel_collector_redaction"]) == names | set(variables), "the role hands over something else"
    return variables | lists | changed


def program(directory: Path) -> Path:
    """Unpack the Collector of the artifact store."""
    done = subprocess.run(
        [sys.executable, "-m", "watchpost", "artifacts", "ensure", "otel_collector", "--json"],
        cwd=PROJECT, stdout=subprocess.PIPE, check=True,
    )  # fmt: skip
    extract(Path(json.loads(done.stdout)["otel_collector"]["path"]), directory)
    return directory / "bin/otelcol"


def write(directory: Path, name: str, configuration: Mapping[str, Any]) -> Path:
    file = directory / name
    file.write_text(yaml.safe_dump(configuration, allow_unicode=True, width=10_000))
    return file


def validate(program: Path, *files: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Have configuration files judged by the Collector itself."""
    command = [str(program), "validate", *(f"--config={file}" for file in files)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})


class Collector:
    """A running Collector; `through` sends one OTLP request and returns what has become of it."""

    def __init__(self, directory: Path, port: int) -> None:
        self.directory = directory
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False)
        self.read = dict.fromkeys(("traces", "logs", "metrics"), 0)

    def through(self, signal: str, request: Mapping[str, Any]) -> dict[str, Any]:
        answer = self.client.post(f"/v1/{signal}", json=request)
        assert answer.status_code == 200, answer.text
        assert answer.json() == {"partialSuccess": {}}
        file = self.directory / f"{signal}.jsonl"
        deadline = time.monotonic() + STARTED
        while time.monotonic() < deadline:
            with file.open("rb") as written:
                written.seek(self.read[signal])
                if (line := written.readline()).endswith(b"\n"):
                    self.read[signal] += len(line)
                    return json.loads(line)
            time.sleep(0.01)  # between two looks
        raise AssertionError(f"nothing came out: {(self.directory / 'log').read_text()}")


@contextmanager
def running(program: Path, directory: Path, settings: Mapping[str, Any]) -> Iterator[Collector]:
    """Run a Collector whose pipelines hold the redaction and nothing else."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    module = plugin()
    names = module.processors(settings)
    (directory / "redaction_key").write_text("a key of the tests")
    frame = {
        "receivers": {"otlp": {"protocols": {"http": {"endpoint": f"127.0.0.1:{port}"}}}},
        "exporters": {
            f"file/{signal}": {"path": str(directory / f"{signal}.jsonl"), "flush_interval": "20ms"} for signal in names
        },
        "service": {
            "pipelines": {
                signal: {"receivers": ["otlp"], "processors": names[signal], "exporters": [f"file/{signal}"]}
                for signal in names
            },
            "telemetry": {"metrics": {"level": "none"}},
        },
    }
    files = [write(directory, "frame.yml", frame), write(directory, "redaction.yml", module.configuration(settings))]
    with (directory / "log").open("w") as log:
        process = subprocess.Popen(
            [program, *(f"--config={file}" for file in files)], stdout=log, stderr=log,
            env={**os.environ, "CREDENTIALS_DIRECTORY": str(directory)},
        )  # fmt: skip
    try:
        deadline = time.monotonic() + STARTED
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline, (directory / "log").read_text()
                time.sleep(0.05)  # between two looks
        yield Collector(directory, port)
    finally:
        process.terminate()
        process.wait(10)


def string(key: str, value: str) -> dict[str, Any]:
    return {"key": key, "value": {"stringValue": value}}


def attributes(text: str) -> list[dict[str, Any]]:
    """An attribute of each kind that can hold text: a string, a list, a map in a map."""
    inner = {
        "values": [string("inner", text), {"key": "list", "value": {"arrayValue": {"values": [{"stringValue": text}]}}}]
    }
    return [
        string("app.text", text),
        {"key": "app.list", "value": {"arrayValue": {"values": [{"stringValue": "first"}, {"stringValue": text}]}}},
        {"key": "app.map", "value": {"kvlistValue": {"values": [{"key": "outer", "value": {"kvlistValue": inner}}]}}},
    ]


def requests(texts: Iterable[str]) -> dict[str, dict[str, Any]]:
    """One OTLP request a signal, with each text in every field that holds text, each in a resource of its own.

    Exemplars are left out: no processor reaches them, as docs/redaction.md tells.
    """
    resources = [_resources(text) for text in texts]
    return {
        signal: {key: [one[key] for one in resources]}
        for signal, key in (("traces", "resourceSpans"), ("logs", "resourceLogs"), ("metrics", "resourceMetrics"))
    }


def _resources(text: str) -> dict[str, dict[str, Any]]:
    trace_id, span_id, now = os.urandom(16).hex(), os.urandom(8).hex(), str(time.time_ns())
    resource = {"attributes": [string("service.name", "shop"), *attributes(text)]}
    scope = {"name": text, "version": text, "attributes": attributes(text)}
    ids = {"traceId": trace_id, "spanId": span_id}
    span = {
        **ids, "name": text, "kind": 2, "startTimeUnixNano": now, "endTimeUnixNano": now, "traceState": f"a={text}",
        "attributes": attributes(text), "status": {"code": 2, "message": text},
        "events": [{"timeUnixNano": now, "name": text, "attributes": attributes(text)}],
        "links": [{**ids, "traceState": f"a={text}", "attributes": attributes(text)}],
    }  # fmt: skip
    record = {**ids, "timeUnixNano": now, "severityText": text, "eventName": text, "attributes": attributes(text)}
    bodies = [value["value"] for value in attributes(text)]
    point = {"timeUnixNano": now, "startTimeUnixNano": now, "attributes": attributes(text)}
    number, sums = {**point, "asInt": "1"}, {"aggregationTemporality": 2}
    distribution = {**point, "count": "1", "sum": 1.0}
    kinds = [
        {"gauge": {"dataPoints": [number]}},
        {"sum": {"dataPoints": [number], "isMonotonic": True, **sums}},
        {"histogram": {"dataPoints": [{**distribution, "bucketCounts": ["1", "0"], "explicitBounds": [1.0]}], **sums}},
        {"exponentialHistogram": {"dataPoints": [{**distribution, "scale": 1, "zeroCount": "1"}], **sums}},
        {"summary": {"dataPoints": [distribution]}},
    ]
    metrics = [
        {"name": text, "description": text, "unit": text, "metadata": attributes(text), **kind} for kind in kinds
    ]
    logs = [{**record, "body": body} for body in bodies]
    both = {"resource": resource, "schemaUrl": text}
    inner = {"scope": scope, "schemaUrl": text}
    return {
        "resourceSpans": {**both, "scopeSpans": [{**inner, "spans": [span]}]},
        "resourceLogs": {**both, "scopeLogs": [{**inner, "logRecords": logs}]},
        "resourceMetrics": {**both, "scopeMetrics": [{**inner, "metrics": metrics}]},
    }
