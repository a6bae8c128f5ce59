"""Errors as problem+json (RFC 9457), each with the trace id by which it can be found again."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from flask import Flask, Response, jsonify
from opentelemetry import trace
from opentelemetry.trace import StatusCode
from werkzeug.exceptions import HTTPException

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FieldError:
    """What is wrong with one field."""

    field: str
    message: str


class InvalidInput(Exception):
    """A request that names the fields to be put right."""

    def __init__(self, *errors: FieldError) -> None:
        """Take at least one error."""
        super().__init__(", ".join(error.field for error in errors))
        self.errors = errors


class InsufficientStorage(HTTPException):
    """Nothing more can be stored."""

    code = 507
    description = (
        "There is no room for more. Delete tasks that are no longer needed; who runs this can give it more "
        "(TASKBOARD_MAX_MIB; with Watchpost: the variable taskboard_max_mib)."
    )


def trace_id() -> str | None:
    """Return the present trace's id as 32 hex digits, or None outside a trace."""
    context = trace.get_current_span().get_span_context()
    return f"{context.trace_id:032x}" if context.is_valid else None


def problem(status: int, title: str, detail: str, errors: tuple[FieldError, ...] = ()) -> Response:
    """Make the response; `errors` name the fields that are at fault."""
    body: dict[str, object] = {"type": "about:blank", "title": title, "status": status, "detail": detail}
    if errors:
        body["errors"] = [{"field": error.field, "message": error.message} for error in errors]
    if found := trace_id():
        body["trace_id"] = found
    response = jsonify(body)
    response.status_code = status
    response.content_type = "application/problem+json"
    return response


def register(app: Flask) -> None:
    """Have every error of the application answered in this one form."""

    @app.errorhandler(InvalidInput)
    def invalid_input(error: InvalidInput) -> Response:
        detail = "; ".join(f"{each.field}: {each.message}" for each in error.errors)
        return problem(422, "Unprocessable Content", detail, error.errors)

    @app.errorhandler(HTTPException)
    def http_error(error: HTTPException) -> Response:
        response = problem(error.code or 500, error.name, error.description or error.name)
        # What the standard wants beside a status, such as Allow with a 405.
        response.headers.extend((k, v) for k, v in error.get_headers() if k.lower() != "content-type")
        return response

    @app.errorhandler(Exception)
    def unexpected(error: Exception) -> Response:
        span = trace.get_current_span()
        span.record_exception(error)
        span.set_status(StatusCode.ERROR, type(error).__name__)
        logger.error("Unhandled %s", type(error).__name__, exc_info=error)
        return problem(500, "Internal Server Error", "The request failed. Quote the trace id when you report it.")
