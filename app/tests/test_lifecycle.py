"""Whatever is done to tasks, in whatever order: the application agrees with a model of it that fits on one page."""

from datetime import datetime

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

titles = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=200).filter(
    str.strip
)
states = st.sampled_from(["open", "done"])
#: Fields as a careless or hostile caller would send them.
junk = st.dictionaries(
    st.sampled_from(["title", "notes", "state", "id", "colour"]),
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.text("x", min_size=2001, max_size=2001),
)


@pytest.fixture
def machine(client):
    class Tasks(RuleBasedStateMachine):
        """The model: for each id what the API last said of the task."""

        ids = Bundle("ids")

        @initialize()
        def empty(self):
            while items := client.get("/api/tasks?limit=200").json["items"]:
                for task in items:
                    client.delete(f"/api/tasks/{task['id']}")
            self.tasks = {}
            self.deleted = set()

        @rule(target=ids, title=titles, notes=st.just("") | titles, state=states)
        def create(self, title, notes, state):
            answer = client.post("/api/tasks", json={"title": title, "notes": notes, "state": state})
            assert answer.status_code == 201
            task = answer.json
            assert task["id"] not in self.tasks and task["id"] > max(self.tasks, default=0)
            assert (task["title"], task["notes"], task["state"]) == (title.strip(), notes.strip(), state)
            assert (task["completed_at"] is None) == (state == "open")
            self.tasks[task["id"]] = task
            return task["id"]

        @rule(id_=ids, change=st.fixed_dictionaries({}, optional={"title": titles, "notes": titles, "state": states}))
        def edit(self, id_, change):
            before = self.tasks[id_]
            task = client.patch(f"/api/tasks/{id_}", json=change).json
            change = {name: value.strip() for name, value in change.items()}
            times = {"updated_at", "completed_at"}
            assert {k: task[k] for k in task.keys() - times} == {
                k: v for k, v in (before | change).items() if k not in times
            }
            changed = any(before[name] != value for name, value in change.items())
            moved = change.get("state", before["state"]) != before["state"]
            assert (when(task, "updated_at") > when(before, "updated_at")) == changed
            assert (task["completed_at"] != before["completed_at"]) == moved
            self.tasks[id_] = task

        @rule(id_=ids)
        def complete(self, id_):
            task = client.post(f"/api/tasks/{id_}/complete").json
            if self.tasks[id_]["state"] == "done":
                assert task == self.tasks[id_]
            assert task["state"] == "done" and task["completed_at"]
            self.tasks[id_] = task

        @rule(id_=consumes(ids))
        def delete(self, id_):
            assert client.delete(f"/api/tasks/{id_}").status_code == 204
            del self.tasks[id_]
            self.deleted.add(id_)

        @rule(id_=ids, fields=junk, how=st.sampled_from(["edit", "create"]))
        def send_junk(self, id_, fields, how):
            before = client.get("/api/tasks?limit=200").json["items"]
            answer = (
                client.patch(f"/api/tasks/{id_}", json=fields)
                if how == "edit"
                else client.post("/api/tasks", json=fields)
            )
            assert answer.status_code in (200, 201, 422)
            if answer.status_code == 422:
                assert {error["field"] for error in answer.json["errors"]} <= {*fields, "title"}
                assert client.get("/api/tasks?limit=200").json["items"] == before, "refused, and yet something changed"
            elif how == "edit":
                self.tasks[id_] = answer.json
            else:
                self.tasks[answer.json["id"]] = answer.json

        @rule(limit=st.integers(1, 5), state=st.none() | states)
        def read_page_by_page(self, limit, state):
            found, query = [], {"limit": limit} | ({"state": state} if state else {})
            while query:
                page = client.get("/api/tasks", query_string=query).json
                assert len(page["items"]) <= limit
                found += page["items"]
                query = page["next_before"] and query | {"before": page["next_before"]}
            assert found == [t for _, t in sorted(self.tasks.items(), reverse=True) if state in (None, t["state"])]

        @precondition(lambda self: self.deleted - self.tasks.keys())  # SQLite may give a deleted id again
        @rule(method=st.sampled_from(["GET", "PATCH", "DELETE", "POST"]), data=st.data())
        def touch_a_deleted_one(self, method, data):
            gone = data.draw(st.sampled_from(sorted(self.deleted - self.tasks.keys())))
            path = f"/api/tasks/{gone}{'/complete' if method == 'POST' else ''}"
            assert client.open(path, method=method, json={}).status_code == 404

        @invariant()
        def what_is_stored_is_what_was_said(self):
            if hasattr(self, "tasks"):
                stored = client.get("/api/tasks?limit=200").json["items"]
                assert {task["id"]: task for task in stored} == self.tasks

    return Tasks


def when(task, field):
    return datetime.fromisoformat(task[field])


def test_application_agrees_with_the_model(machine):
    # Failures are not shrunk: that takes minutes, and twenty steps can be read as they are.
    phases = [Phase.explicit, Phase.reuse, Phase.generate]
    how = settings(max_examples=15, stateful_step_count=20, deadline=None, phases=phases)
    run_state_machine_as_test(machine, settings=how)
