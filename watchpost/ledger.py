"""The ledger of a run: each request to the task manager, how it was answered, and by which trace it can be found.

On disk it is JSON lines: first what the run was, then a line a request, written as it is answered, so that a run that
is interrupted keeps what it had.
"""

from __future__ import annotations

import json
import math
import secrets
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx
from pydantic import TypeAdapter, ValidationError

#: Answers that a proxy gives in place of the application: such a request never reached it.
_NOT_FROM_APPLICATION = {502, 503, 504}


class LedgerError(Exception):
    """A ledger cannot be read; the message names the file and what is wrong with it."""


@dataclass(frozen=True)
class Sent:
    """One request and how it was answered. Ids are lower-case hex, as in W3C trace context."""

    method: str
    path: str
    expected: int
    status: int  # 0 when there was no answer at all
    trace_id: str
    span_id: str
    reads_database: bool
    error: str = ""
    operation: str = ""  # what it was made for, as the scenario calls it
    started: float = 0.0  # Unix seconds
    seconds: float = 0.0  # until the whole answer was there, as its caller saw it

    @property
    def reached(self) -> bool:
        """Whether the application itself answered, so that telemetry of it must exist."""
        return self.status != 0 and self.status not in _NOT_FROM_APPLICATION

    @property
    def available(self) -> bool:
        """Whether the service did its part: it answered, and not with an error of its own (5xx)."""
        return 0 < self.status < 500

    @property
    def as_expected(self) -> bool:
        """Whether the answer is the one that this request must get, by its status and by what it holds."""
        return self.status == self.expected and not self.error

    def __str__(self) -> str:
        """Name the request for a person."""
        return f"{self.method} {self.path} (trace {self.trace_id})"


@dataclass(frozen=True)
class Run:
    """What a run was: the first line of its ledger."""

    id: str
    url: str
    started: float  # Unix seconds
    application: str = ""  # which version answered
    seed: int = 0
    scenario: str = ""  # what was asked for, in words: only runs of the same can be compared


@dataclass
class Ledger:
    """Sends requests and remembers them in order; safe for several threads."""

    client: httpx.Client
    sent: list[Sent] = field(default_factory=list)
    file: Path | None = None  # appended to, line by line

    def __post_init__(self) -> None:
        """Nobody writes yet."""
        self._lock = threading.Lock()

    def begin(self, run: Run) -> None:
        """Write down what the run is; whatever the file held is gone."""
        if self.file:
            self.file.write_text(json.dumps(asdict(run)) + "\n")

    def send(
        self,
        method: str,
        path: str,
        expected: int,
        body: object = None,
        reads_database: bool = True,
        operation: str = "",
        holds: Mapping[str, object] | None = None,
    ) -> tuple[Sent, dict[str, Any]]:
        """Send one sampled request with its own `traceparent` (W3C Trace Context, level 1).

        `holds` are fields that the answer must have. Returns the request and its JSON answer, which is an empty mapping
        when the status is not the expected one or there is no JSON object; the ledger knows why.
        """
        trace_id, span_id = secrets.token_hex(16), secrets.token_hex(8)
        status, error = 0, ""
        answer: object = {}
        started, clock = time.time(), time.perf_counter()
        try:
            response = self.client.request(
                method, path, json=body, headers={"traceparent": f"00-{trace_id}-{span_id}-01"}
            )
            status = response.status_code
            if status == expected:
                answer = response.json() if response.content else {}
                error = _lacks(answer, holds or {})
        except httpx.HTTPError as caught:
            error = f"{type(caught).__name__}: {caught}"
        except ValueError:
            error = "the answer is not JSON"
        seconds = time.perf_counter() - clock
        sent = Sent(
            method, path, expected, status, trace_id, span_id, reads_database, error, operation, started, seconds
        )
        self._remember(sent)
        return sent, answer if isinstance(answer, dict) else {}

    def _remember(self, sent: Sent) -> None:
        with self._lock:
            self.sent.append(sent)
            if self.file:
                with self.file.open("a") as file:
                    file.write(json.dumps(asdict(sent)) + "\n")

    @property
    def reached(self) -> list[Sent]:
        """The requests that the application answered."""
        return [sent for sent in self.sent if sent.reached]


def _lacks(answer: object, holds: Mapping[str, object]) -> str:
    """Say what an answer does not hold that it must; empty when it holds all."""
    has = answer if isinstance(answer, dict) else {}
    wrong = [name for name, value in holds.items() if has.get(name) != value]
    return f"{wrong[0]} is {has.get(wrong[0])!r}, not {holds[wrong[0]]!r}" if wrong else ""


def read(file: Path) -> tuple[Run, list[Sent]]:
    """Read a ledger. Raises LedgerError naming the line that cannot be read; a torn last line is left out."""
    try:
        lines = file.read_text().splitlines(keepends=True)
    except OSError as error:
        raise LedgerError(f"{file}: {error.strerror}; `watchpost traffic` writes it") from error
    if lines and not lines[-1].endswith("\n"):
        lines.pop()  # the run was ended while it wrote this
    if not lines:
        raise LedgerError(f"{file} is empty: the run ended before it began; run `watchpost traffic` again")
    run: Run = _parse(TypeAdapter(Run), file, 1, lines[0])
    adapter = TypeAdapter(Sent)
    return run, [_parse(adapter, file, number, line) for number, line in enumerate(lines[1:], 2)]


def _parse(adapter: TypeAdapter[Any], file: Path, number: int, line: str) -> Any:  # noqa: ANN401 - what the adapter makes
    try:
        return adapter.validate_json(line)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise LedgerError(f"{file}, line {number}: {where + ': ' if where else ''}{first['msg']}") from error


def percentile(values: Iterable[float], share: float) -> float:
    """Return the smallest value that at least this share (0 to 1) of the values does not exceed; NaN of none.

    The nearest-rank definition: always a value that occurred. https://en.wikipedia.org/wiki/Percentile
    """
    ordered = sorted(values)
    if not ordered:
        return float("nan")
    return ordered[max(math.ceil(share * len(ordered)), 1) - 1]
