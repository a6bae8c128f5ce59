"""/api/tasks: create, list, edit, complete and delete."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from flask import Blueprint, Response, current_app, jsonify, request, url_for
from opentelemetry import trace
from sqlalchemy import select
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session, sessionmaker
from werkzeug.exceptions import NotFound

from taskboard import database
from taskboard.models import NOTES_LENGTH, TITLE_LENGTH, State, Task
from taskboard.problems import FieldError, InsufficientStorage, InvalidInput

logger = logging.getLogger(__name__)
blueprint = Blueprint("tasks", __name__, url_prefix="/api/tasks")

PAGE_SIZE = 50
MAX_PAGE_SIZE = 200
#: The largest id that a database's integer holds.
MAX_ID = 2**63 - 1


@contextmanager
def session() -> Iterator[Session]:
    """Open a transaction: committed at the end of the block, rolled back by an exception.

    Raises InsufficientStorage when there is no room for what was written.
    """
    factory: sessionmaker[Session] = current_app.extensions["taskboard.session"]
    try:
        with factory.begin() as opened:
            yield opened
    except OperationalError as error:
        if database.is_full(error):
            raise InsufficientStorage from error
        raise


def find(opened: Session, task_id: int) -> Task:
    """Return a task; raise NotFound for an id that is nobody's."""
    task = opened.get(Task, task_id) if task_id <= MAX_ID else None
    if task is None:
        raise NotFound(f"There is no task {task_id}.")
    return task


def _text(shortest: int, longest: int) -> Callable[[object], str]:
    def read(value: object) -> str:
        if not isinstance(value, str):
            raise ValueError("must be text")
        value = value.strip()
        if len(value) < shortest:
            raise ValueError("must not be empty")
        if len(value) > longest:
            raise ValueError(f"must have at most {longest} characters, not {len(value)}")
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise ValueError("holds half a character (a lone surrogate), which cannot be stored")
        if "\0" in value:
            raise ValueError("holds the character NUL, which PostgreSQL cannot store")
        return value

    return read


def _whole_number(largest: int) -> Callable[[object], int]:
    def read(value: object) -> int:
        text = str(value)
        if text.isascii() and text.isdigit() and len(text) < 20 and 1 <= int(text) <= largest:
            return int(text)
        raise ValueError(f"must be a whole number from 1 to {largest}")

    return read


def _state(value: object) -> State:
    try:
        return State(value)  # type: ignore[arg-type]  # whatever it is, it is a state or refused
    except ValueError:
        raise ValueError(f"must be one of {', '.join(State)}") from None


Readers = dict[str, Callable[[object], Any]]
#: The fields of a task that a caller may write.
FIELDS: Readers = {"title": _text(1, TITLE_LENGTH), "notes": _text(0, NOTES_LENGTH), "state": _state}
#: What a caller may say about the list wanted.
ARGUMENTS: Readers = {"state": _state, "limit": _whole_number(MAX_PAGE_SIZE), "before": _whole_number(MAX_ID)}


def read(given: Mapping[str, object], readers: Readers, required: tuple[str, ...] = ()) -> dict[str, Any]:
    """Read what a caller gave; raise InvalidInput with everything that is missing, unknown or wrong."""
    errors = [FieldError(name, "is required") for name in required if name not in given]
    values = {}
    for name, value in given.items():
        if name not in readers:
            errors.append(FieldError(name, f"is not known here; known are {', '.join(readers)}"))
            continue
        try:
            values[name] = readers[name](value)
        except ValueError as error:
            errors.append(FieldError(name, str(error)))
    if errors:
        raise InvalidInput(*errors)
    return values


def body() -> dict[str, object]:
    """Return the request's JSON object; another content type is a 415, what is not JSON a 400."""
    given = request.get_json()
    if not isinstance(given, dict):
        raise InvalidInput(FieldError("body", "must be a JSON object"))
    return given


@blueprint.get("")
def list_tasks() -> Response:
    """List tasks, newest first: `state` filters, `limit` sizes a page, `before` continues after the last one seen."""
    arguments = read(request.args, ARGUMENTS)
    limit = arguments.get("limit", PAGE_SIZE)
    # One more than asked for tells whether there is a next page, without counting the table.
    query = select(Task).order_by(Task.id.desc()).limit(limit + 1)
    if "before" in arguments:
        query = query.where(Task.id < arguments["before"])
    if "state" in arguments:
        query = query.where(Task.state == arguments["state"])
    with session() as opened:
        found = [task.as_dict() for task in opened.scalars(query)]
    page = found[:limit]
    return jsonify(items=page, next_before=page[-1]["id"] if len(found) > limit else None)


@blueprint.post("")
def create_task() -> tuple[Response, int, dict[str, str]]:
    """Create a task of `title`, and `notes` and `state` if given."""
    values = read(body(), FIELDS, required=("title",))
    now = datetime.now(UTC)
    with session() as opened:
        task = Task(title=values["title"], notes=values.get("notes", ""), created_at=now, updated_at=now)
        task.state = State.OPEN
        task.set_state(values.get("state", State.OPEN), now)
        opened.add(task)
        opened.flush()
        answer = task.as_dict()
    _tell_change(task.id, None, task.state)
    return jsonify(answer), 201, {"Location": url_for("tasks.get_task", task_id=task.id)}


@blueprint.get("/<int:task_id>")
def get_task(task_id: int) -> Response:
    """Return one task."""
    with session() as opened:
        return jsonify(find(opened, task_id).as_dict())


@blueprint.patch("/<int:task_id>")
def edit_task(task_id: int) -> Response:
    """Change the fields that the body names, and no other."""
    return _edit(task_id, read(body(), FIELDS))


@blueprint.post("/<int:task_id>/complete")
def complete_task(task_id: int) -> Response:
    """Mark a task as done; doing so twice changes nothing more."""
    return _edit(task_id, {"state": State.DONE})


def _edit(task_id: int, values: dict[str, Any]) -> Response:
    now = datetime.now(UTC)
    with session() as opened:
        task = find(opened, task_id)
        before = task.state
        for name, value in values.items():
            if isinstance(value, State):
                task.set_state(value, now)
            else:
                setattr(task, name, value)
        if opened.is_modified(task):
            task.updated_at = now
        answer = task.as_dict()
    if task.state is not before:
        _tell_change(task_id, before, task.state)
    return jsonify(answer)


def _tell_change(task_id: int, before: State | None, after: State | None) -> None:
    """Say on the request's span and in the log what happened to a task, once it is committed. Never its title."""
    attributes: dict[str, str | int] = {"task.id": task_id}
    attributes |= {"task.state.from": before.value} if before else {}
    attributes |= {"task.state.to": after.value} if after else {}
    trace.get_current_span().set_attributes(attributes)
    what = "created" if before is None else "deleted" if after is None else f"went from {before} to {after}"
    logger.info("Task %d %s", task_id, what, extra=attributes)


@blueprint.delete("/<int:task_id>")
def delete_task(task_id: int) -> tuple[str, int]:
    """Delete a task for good."""
    with session() as opened:
        task = find(opened, task_id)
        opened.delete(task)
    _tell_change(task_id, task.state, None)
    return "", 204
