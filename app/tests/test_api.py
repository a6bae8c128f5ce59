"""/api/tasks, as a caller sees it."""

import json
import string
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

PROBLEM = "application/problem+json"


def create(client, **fields):
    answer = client.post("/api/tasks", json={"title": "Buy milk"} | fields)
    assert answer.status_code == 201, answer.json
    return answer.json


def post(client, body):
    """Send any JSON, `null` too."""
    return client.post("/api/tasks", data=json.dumps(body), content_type="application/json")


def wrong_fields(answer):
    assert (answer.status_code, answer.content_type) == (422, PROBLEM)
    assert answer.json["status"] == 422
    return sorted(error["field"] for error in answer.json["errors"])


def test_created_task_is_found_where_the_answer_says(client):
    answer = client.post("/api/tasks", json={"title": "  Buy milk ", "notes": "two"})
    assert answer.status_code == 201
    task = client.get(answer.headers["Location"]).json
    assert task == answer.json
    assert (task["title"], task["notes"], task["state"], task["completed_at"]) == ("Buy milk", "two", "open", None)
    assert task["created_at"].endswith("+00:00")


def test_edit_changes_the_named_fields_only(client):
    task = create(client, notes="two")
    answer = client.patch(f"/api/tasks/{task['id']}", json={"title": "Buy oats"})
    assert answer.status_code == 200
    assert answer.json == task | {"title": "Buy oats", "updated_at": answer.json["updated_at"]}
    assert answer.json["updated_at"] > task["updated_at"]


def test_edit_that_changes_nothing_is_no_edit(client):
    task = create(client)
    assert client.patch(f"/api/tasks/{task['id']}", json={"title": task["title"]}).json == task


def test_completing_twice_keeps_the_first_time(client):
    task = create(client)
    first = client.post(f"/api/tasks/{task['id']}/complete").json
    assert first["state"] == "done" and first["completed_at"]
    assert client.post(f"/api/tasks/{task['id']}/complete").json == first


def test_completed_task_can_be_opened_again(client):
    task = create(client, state="done")
    assert task["completed_at"]
    again = client.patch(f"/api/tasks/{task['id']}", json={"state": "open"}).json
    assert (again["state"], again["completed_at"]) == ("open", None)


def test_deleted_task_is_gone(client):
    path = f"/api/tasks/{create(client)['id']}"
    assert client.delete(path).status_code == 204
    for answer in (client.get(path), client.delete(path), client.patch(path, json={}), client.post(f"{path}/complete")):
        assert (answer.status_code, answer.content_type) == (404, PROBLEM)


def test_pages_hold_every_task_once_newest_first(client):
    made = [create(client, title=str(number))["id"] for number in range(7)]
    seen, query = [], {"limit": 3}
    while query:
        page = client.get("/api/tasks", query_string=query).json
        seen += [task["id"] for task in page["items"]]
        query = page["next_before"] and {"limit": 3, "before": page["next_before"]}
    assert seen == made[::-1]


def test_last_full_page_has_no_next(client):
    for _ in range(3):
        create(client)
    assert client.get("/api/tasks?limit=3").json["next_before"] is None


def test_list_is_filtered_by_state(client):
    create(client)
    done = create(client, state="done")
    assert client.get("/api/tasks?state=done").json["items"] == [done]


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({}, ["title"]),
        ({"title": "  "}, ["title"]),
        ({"title": "x" * 201}, ["title"]),
        ({"title": 3, "notes": None, "state": "asleep"}, ["notes", "state", "title"]),
        ({"title": "x", "colour": "red"}, ["colour"]),
        ({"title": "x", "state": ["open"]}, ["state"]),
        ({"title": "\ud800"}, ["title"]),
        ({"title": "a\0b"}, ["title"]),
        (["title"], ["body"]),
        (None, ["body"]),
    ],
)
def test_every_wrong_field_is_named(client, body, fields):
    assert wrong_fields(post(client, body)) == fields


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=201", "limit=x", "before=-1", "before=²", "state=asleep", "page=2"]
)
def test_wrong_argument_of_the_list_is_named(client, query):
    assert wrong_fields(client.get(f"/api/tasks?{query}")) == [query.partition("=")[0]]


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        ({"method": "POST", "data": "{", "content_type": "application/json"}, 400),
        ({"method": "POST", "data": "title=x", "content_type": "application/x-www-form-urlencoded"}, 415),
        ({"method": "PUT"}, 405),
        ({"method": "POST", "data": "x" * 70_000, "content_type": "application/json"}, 413),
    ],
)
def test_request_that_cannot_be_read_is_a_problem(client, request_, status):
    answer = client.open("/api/tasks", **request_)
    assert (answer.status_code, answer.content_type) == (status, PROBLEM)
    assert answer.json["status"] == status
    assert ("Allow" in answer.headers) == (status == 405)


@pytest.mark.parametrize("path", ["/nowhere", "/api/tasks/x", "/api/tasks/0", f"/api/tasks/{10**30}"])
def test_what_does_not_exist_is_a_problem(client, path):
    answer = client.get(path)
    assert (answer.status_code, answer.content_type) == (404, PROBLEM)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=json_values | st.dictionaries(st.sampled_from(["title", "notes", "state", "id"]), json_values))
def test_no_body_breaks_the_application(client, body):
    answer = post(client, body)
    assert answer.status_code in (201, 422)
    if answer.status_code == 201:
        assert client.get(answer.headers["Location"]).json == answer.json


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(title=st.text(st.characters(exclude_categories=["Cs"]), max_size=220))
def test_title_is_kept_as_written_or_refused(client, title):
    answer = client.post("/api/tasks", json={"title": title})
    if 1 <= len(title.strip()) <= 200 and "\0" not in title.strip():
        assert client.get(answer.headers["Location"]).json["title"] == title.strip()
    else:
        assert wrong_fields(answer) == ["title"]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(query=st.dictionaries(st.sampled_from(["limit", "before", "state"]), st.text(string.printable, max_size=25)))
def test_no_query_breaks_the_list(client, query):
    assert client.get("/api/tasks", query_string=query).status_code in (200, 422)


def test_writers_at_the_same_time_wait_for_each_other(app):
    def write(number):
        return app.test_client().post("/api/tasks", json={"title": str(number)}).status_code

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(write, range(64))) == {201}
    assert len(app.test_client().get("/api/tasks?limit=200").json["items"]) == 64


def test_version_tells_which_artifact_runs(client):
    assert client.get("/version").get_data(as_text=True).strip() == '{"name":"taskboard","version":"7.7"}'


def test_page_loads_nothing_from_elsewhere(client):
    answer = client.get("/")
    assert answer.status_code == 200
    page = answer.get_data(as_text=True)
    assert "://" not in page and "<style" not in page and " style=" not in page
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert "static/dist/taskboard.js" in page  # built from frontend/, and served in the same way
    for name in ("taskboard.css", "icon.svg"):
        assert f"static/{name}" in page
        assert client.get(f"/static/{name}").status_code == 200
