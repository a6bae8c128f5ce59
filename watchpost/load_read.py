"""Reads a run's items back: every one, not a sample."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import httpx

from watchpost.load_send import COUNTER, Ledger, Signal, Telemetry, point_key, span_key
from watchpost.verify_grafana import LOKI, PROMETHEUS, AskError, Span

PAGE = 5000  # log lines that Loki gives at once
POLL = 1.0  # seconds between two looks at what is not visible yet
AT_ONCE = 4  # questions at a time
GIVE_UP = 10  # traces that are asked for in vain, after which a look ends
UNANSWERED = (AskError, httpx.HTTPError, ValueError, KeyError)


@dataclass(frozen=True)
class Count:
    """What became of one signal's items."""

    signal: Signal
    sent: int
    acknowledged: int
    refused: int
    found: int  # also of those that were not acknowledged: a sender cannot know whether a broken request arrived
    lost: int  # acknowledged, and not found
    duplicates: int  # found more than once
    first_lost: tuple[str, ...]
    why: Mapping[str, int]  # refused: reason → items
    error: str  # why the store could not be asked the last time


class Stores(Protocol):
    """Whoever leads to the three stores, by the uids of their data sources: Grafana, or a way of one's own."""

    def trace(self, trace_id: str) -> list[Span]:
        """Return the spans that are stored of a trace; none when it is not known."""

    def proxied(self, uid: str, path: str, params: dict[str, Any]) -> dict[str, Any]:
        """Ask a store in its own words."""


@dataclass
class Reader:
    """Looks for the items of one run, which began at `since` (Unix seconds)."""

    stores: Stores
    telemetry: Telemetry
    since: float

    def __post_init__(self) -> None:
        """Nothing has been seen yet."""
        self.seen: dict[Signal, Counter[str]] = {signal: Counter() for signal in Signal}
        self.errors: dict[Signal, str] = {}

    def missing(self, signal: Signal, ledger: Ledger) -> set[str]:
        """Return the keys of what is acknowledged and has not been seen."""
        return ledger.acknowledged.keys() - self.seen[signal].keys()

    def look(self, ledgers: Mapping[Signal, Ledger]) -> None:
        """Look once for whatever is acknowledged and has not been seen."""
        for signal, ledger in ledgers.items():
            missing = self.missing(signal, ledger)
            if missing:
                self.errors.pop(signal, None)
                try:
                    self.seen[signal].update(self._read(signal, missing))
                except UNANSWERED as error:
                    self._note(signal, error)

    def wait(self, ledgers: Mapping[Signal, Ledger], timeout: float) -> list[Count]:
        """Look until all is found; return the counts. The last look begins when `timeout` seconds are over."""
        deadline = time.monotonic() + timeout
        while True:
            began = time.monotonic()  # one look can take minutes: what came meanwhile is found by the next
            self.look(ledgers)
            counts = [self._count(signal, ledger) for signal, ledger in ledgers.items()]
            if not any(count.lost for count in counts) or began > deadline:
                return counts
            time.sleep(POLL)

    def _count(self, signal: Signal, ledger: Ledger) -> Count:
        seen = self.seen[signal]
        lost = self.missing(signal, ledger)
        return Count(
            signal,
            ledger.sent,
            len(ledger.acknowledged),
            ledger.refused.total(),
            len(seen),
            len(lost),
            sum(times - 1 for times in seen.values()),
            tuple(sorted(lost)[:3]),
            dict(ledger.refused),
            self.errors.get(signal, ""),
        )

    def _read(self, signal: Signal, missing: Iterable[str]) -> Counter[str]:
        """Return how often each item was found: all that the store has, less what has been seen before."""
        match signal:
            case Signal.TRACES:
                found = self._spans({key.partition("/")[0] for key in missing})
            case Signal.LOGS:
                found = self._lines()
            case Signal.METRICS:
                found = self._points()
        return found - self.seen[signal]

    def _note(self, signal: Signal, error: Exception) -> None:
        self.errors[signal] = f"{type(error).__name__}: {error}"

    def _spans(self, trace_ids: Iterable[str]) -> Counter[str]:
        """Ask for each trace; one that is not answered is left for the next look. After a few this look ends."""
        found: Counter[str] = Counter()
        unanswered = 0
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for job in [pool.submit(_spans_of_trace, self.stores, trace_id) for trace_id in sorted(trace_ids)]:
                try:
                    found.update(job.result())
                except UNANSWERED as error:
                    self._note(Signal.TRACES, error)
                    unanswered += 1
                    if unanswered == GIVE_UP:
                        pool.shutdown(cancel_futures=True)
                        break
        return found

    def _lines(self) -> Counter[str]:
        lines: Counter[str] = Counter()
        start, end = int(self._begin * 1e9), int(self._end * 1e9)
        while True:
            query = f'{{service_name="{self.telemetry.service}"}} |= "{self.telemetry.line}"'
            params = {"query": query, "limit": PAGE, "start": start, "end": end, "direction": "forward"}
            answer = self.stores.proxied(LOKI, "loki/api/v1/query_range", params)
            page = [(int(at), line) for stream in answer["data"]["result"] for at, line, *_ in stream["values"]]
            lines.update(line for _, line in page)
            if len(page) < PAGE:
                return lines
            start = max(at for at, _ in page) + 1  # each line has a time of its own

    def _points(self) -> Counter[str]:
        name = COUNTER.replace(".", "_")
        window = int(self._end - self._begin) + 1
        labels = f'job=~"(.+/)?{self.telemetry.service}",instance="{self.telemetry.run}"'
        query = f'{{__name__=~"{name}(_total)?",{labels}}}[{window}s]'
        answer = self.stores.proxied(PROMETHEUS, "api/v1/query", {"query": query, "time": self._end})
        series: list[dict[str, Any]] = answer["data"]["result"]
        points = [(one["metric"]["series"], float(value)) for one in series for _, value in one["values"]]
        return Counter(point_key(name, value) for name, value in points if value)  # a zero marks the start

    @property
    def _begin(self) -> float:
        return self.since + min(0.0, self.telemetry.shift) - 60

    @property
    def _end(self) -> float:
        return time.time() + max(0.0, self.telemetry.shift) + 60


def _spans_of_trace(stores: Stores, trace_id: str) -> list[str]:
    return [span_key(trace_id, span.span_id) for span in stores.trace(trace_id)]
