"""Faults on purpose, so that dashboards and alerts can be tried for real.

Off unless an operator writes a file that names them; no request can switch one on. A request that meets one says so:
its server span and its log line carry `watchpost.fault`, so that nobody takes a drill for an incident.
"""

from __future__ import annotations

import json
import logging
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flask import Flask, g, request
from opentelemetry import trace
from sqlalchemy import Engine, text

logger = logging.getLogger(__name__)

ATTRIBUTE = "watchpost.fault"
#: kind -> the fields that it has beside `share` and `route`
KINDS: dict[str, tuple[str, ...]] = {"latency": ("milliseconds",), "error": (), "slow_query": ("milliseconds",)}
LONGEST_MILLISECONDS = 60_000
#: Asked at every deploy and every few seconds: a fault there would be one of the deployment, not of the service.
SPARED = {"healthz", "version", "static"}
#: Rows that are counted to learn how many the database counts in a second.
SAMPLE_ROWS = 100_000

_COUNT = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :rows) SELECT count(*) FROM n"
#: The statement says what it is wherever it is seen, such as in its own span.
_MARK = f" -- {ATTRIBUTE}"


class InjectedError(RuntimeError):
    """The error that an operator asked for."""


class FaultsError(ValueError):
    """The faults cannot be read; the message names what is wrong."""


@dataclass(frozen=True)
class Fault:
    """One kind of fault, and how often it happens."""

    kind: str
    #: Of the requests, from 0 to 1.
    share: float
    milliseconds: int = 0
    #: As Flask writes it, such as /api/tasks/<int:task_id>; every route when empty.
    route: str = ""

    def __str__(self) -> str:
        """Describe it for a log line."""
        size = f" of {self.milliseconds} ms" if self.milliseconds else ""
        return f"{self.kind}{size} in {self.share:.1%} of the requests{f' to {self.route}' if self.route else ''}"


def load(path: str) -> tuple[Fault, ...]:
    """Read a file of faults, {kind: {share, milliseconds, route}}; no path means none. Raises FaultsError."""
    if not path:
        return ()
    try:
        given = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise FaultsError(f"{path} cannot be read: {error}") from None
    if not isinstance(given, dict):
        raise FaultsError(f"{path} must map kinds of faults to what they are")
    return tuple(_fault(kind, fields) for kind, fields in given.items())


def _fault(kind: str, fields: Any) -> Fault:  # noqa: ANN401 - whatever was written
    if kind not in KINDS:
        raise FaultsError(f"{kind} is not a kind of fault; known are {', '.join(KINDS)}")
    known = {"share", "route", *KINDS[kind]}
    if not isinstance(fields, dict) or not set(fields) <= known or not {"share", *KINDS[kind]} <= set(fields):
        raise FaultsError(f"{kind} has the fields {', '.join(sorted(known))}, of which only route may be left out")
    share, milliseconds, route = fields["share"], fields.get("milliseconds", 0), fields.get("route", "")
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
        raise FaultsError(f"{kind}.share must be a number from 0 to 1")
    if type(milliseconds) is not int or not 0 <= milliseconds <= LONGEST_MILLISECONDS:
        raise FaultsError(f"{kind}.milliseconds must be a whole number from 0 to {LONGEST_MILLISECONDS}")
    if not isinstance(route, str):
        raise FaultsError(f"{kind}.route must be text")
    return Fault(kind, share, milliseconds, route)


class Faults:
    """The faults of one application."""

    def __init__(self, faults: tuple[Fault, ...], engine: Engine) -> None:
        """Make nothing happen yet."""
        self.faults = faults
        self._engine = engine
        self._rows_per_second = 0.0

    def register(self, app: Flask) -> None:
        """Let the faults happen in requests; without any, nothing is registered."""
        app.extensions["taskboard.faults"] = self
        if self.faults:
            app.before_request(self._meet)

    def announce(self) -> None:
        """Say at the start that faults are on."""
        for fault in self.faults:
            logger.warning("A fault is switched on (taskboard_faults): %s", fault)

    def _meet(self) -> None:
        route = request.url_rule.rule if request.url_rule else ""
        if request.endpoint in SPARED:
            return
        met = [f for f in self.faults if f.route in ("", route) and random.random() < f.share]  # noqa: S311
        if not met:
            return
        g.fault = ",".join(fault.kind for fault in met)
        trace.get_current_span().set_attribute(ATTRIBUTE, g.fault)
        # The error comes last: it ends the request.
        for fault in sorted(met, key=lambda fault: fault.kind == "error"):
            if fault.kind == "latency":
                time.sleep(fault.milliseconds / 1000)
            elif fault.kind == "slow_query":
                self._query(fault.milliseconds / 1000)
            else:
                raise InjectedError("a fault that is switched on (taskboard_faults), not an incident")

    def _query(self, seconds: float) -> None:
        """Have the database work for about so long, in one statement."""
        with self._engine.connect() as connection:
            if self._engine.dialect.name == "postgresql":
                connection.execute(text(f"SELECT pg_sleep(:seconds){_MARK}"), {"seconds": seconds})
                return
            if not self._rows_per_second:
                for _ in range(3):  # the best of three: another process may have had the processor
                    started = time.perf_counter()
                    connection.execute(text(_COUNT + _MARK), {"rows": SAMPLE_ROWS})
                    rate = SAMPLE_ROWS / (time.perf_counter() - started)
                    self._rows_per_second = max(self._rows_per_second, rate)
            connection.execute(text(_COUNT + _MARK), {"rows": max(1, int(seconds * self._rows_per_second))})
