"""The requests that `watchpost verify` makes of its own."""

from __future__ import annotations

import secrets

import httpx

from watchpost.ledger import Ledger


def exercise(client: httpx.Client, count: int) -> tuple[Ledger, list[int]]:
    """Create, list, edit, complete and delete `count` tasks and make one bad request.

    Returns the ledger and the ids of created tasks that could not be deleted again.
    """
    ledger = Ledger(client)
    made: list[int] = []
    label = f"watchpost verify {secrets.token_hex(4)}"
    try:
        for number in range(1, count + 1):
            _, task = ledger.send("POST", "/api/tasks", 201, {"title": f"{label} {number}"})
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
    sent, _ = ledger.send("DELETE", f"/api/tasks/{task_id}", 204)
    return sent.status in (204, 404)
