"""Requests to the task manager that can be found again: each begins a trace of its own, and a ledger keeps them."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import Any

import httpx

#: Answers that a proxy gives in place of the application: such a request never reached it.
_NOT_FROM_APPLICATION = {502, 503, 504}


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

    @property
    def reached(self) -> bool:
        """Whether the application itself answered, so that telemetry of it must exist."""
        return self.status != 0 and self.status not in _NOT_FROM_APPLICATION

    def __str__(self) -> str:
        """Name the request for a person."""
        return f"{self.method} {self.path} (trace {self.trace_id})"


@dataclass
class Ledger:
    """Sends requests and remembers them in order."""

    client: httpx.Client
    sent: list[Sent] = field(default_factory=list)

    def send(
        self, method: str, path: str, expected: int, body: object = None, reads_database: bool = True
    ) -> dict[str, Any]:
        """Send one sampled request with its own `traceparent` (W3C Trace Context, level 1) and return its JSON answer.

        Returns an empty mapping when the answer is not the expected one or has no JSON object; the ledger knows why.
        """
        trace_id, span_id = secrets.token_hex(16), secrets.token_hex(8)
        status, error, answer = 0, "", {}
        try:
            response = self.client.request(
                method, path, json=body, headers={"traceparent": f"00-{trace_id}-{span_id}-01"}
            )
            status = response.status_code
            if status == expected and response.content:
                answer = response.json()
        except httpx.HTTPError as caught:
            error = f"{type(caught).__name__}: {caught}"
        except ValueError:
            error = "the answer is not JSON"
        self.sent.append(Sent(method, path, expected, status, trace_id, span_id, reads_database, error))
        return answer if isinstance(answer, dict) else {}

    @property
    def reached(self) -> list[Sent]:
        """The requests that the application answered."""
        return [sent for sent in self.sent if sent.reached]


def exercise(client: httpx.Client, count: int) -> tuple[Ledger, list[int]]:
    """Create, list, edit, complete and delete `count` tasks and make one bad request.

    Returns the ledger and the ids of created tasks that could not be deleted again.
    """
    ledger = Ledger(client)
    made: list[int] = []
    label = f"watchpost verify {secrets.token_hex(4)}"
    try:
        for number in range(1, count + 1):
            task = ledger.send("POST", "/api/tasks", 201, {"title": f"{label} {number}"})
            if "id" in task:
                made.append(task["id"])
        ledger.send("GET", "/api/tasks", 200)
        # The deliberate mistake: refused before the database is asked.
        ledger.send("POST", "/api/tasks", 422, {"title": ""}, reads_database=False)
        for task_id in made:
            ledger.send("PATCH", f"/api/tasks/{task_id}", 200, {"title": f"{label} edited"})
            ledger.send("POST", f"/api/tasks/{task_id}/complete", 200)
    finally:
        left = [task_id for task_id in made if not _deleted(ledger, task_id)]
    return ledger, left


def _deleted(ledger: Ledger, task_id: int) -> bool:
    ledger.send("DELETE", f"/api/tasks/{task_id}", 204)
    return ledger.sent[-1].status in (204, 404)
