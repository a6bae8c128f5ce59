"""The application: its parts put together by a factory, so that a test can have as many as it likes."""

from __future__ import annotations

import logging
import time

from flask import Flask, Response, g, jsonify, render_template, request
from opentelemetry import propagate
from sqlalchemy.orm import sessionmaker

from taskboard import api, database, problems
from taskboard.faults import ATTRIBUTE, Faults
from taskboard.models import NOTES_LENGTH, TITLE_LENGTH
from taskboard.settings import Settings

logger = logging.getLogger(__name__)

#: Larger than any task can be.
MAX_BODY_BYTES = 64 * 1024

HEADERS = {
    # The page loads its own script and style, talks to its own origin, and nothing else.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
}


def create_app(settings: Settings) -> Flask:
    """Make the application. The database's schema must be there already: see `taskboard.database.migrate`."""
    app = Flask(__name__)
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY_BYTES
    engine = database.connect(settings.database_url, max_mib=settings.max_mib)
    app.extensions["taskboard.session"] = sessionmaker(engine, expire_on_commit=False)
    problems.register(app)
    app.register_blueprint(api.blueprint)

    @app.get("/")
    def page() -> str:
        carrier: dict[str, str] = {}
        propagate.inject(carrier)  # so that the loading of the page is part of the trace that made it
        return render_template(
            "index.html",
            version=settings.version,
            traceparent=carrier.get("traceparent", ""),
            title_length=TITLE_LENGTH,
            notes_length=NOTES_LENGTH,
        )

    @app.get("/healthz")
    def healthz() -> Response:
        """Whether this process answers. It does not ask the database: a restart would not mend that."""
        return jsonify(status="ok")

    @app.get("/version")
    def version() -> Response:
        return jsonify(name="taskboard", version=settings.version)

    @app.before_request
    def start_clock() -> None:
        g.started = time.perf_counter()

    Faults(settings.faults, engine).register(app)  # after the clock: a fault is part of the request

    @app.after_request
    def finish(response: Response) -> Response:
        for name, value in HEADERS.items():
            response.headers.setdefault(name, value)
        _log_request(response)
        return response

    return app


def _log_request(response: Response) -> None:
    """Write one line a request. The route, not the path: a path may hold what somebody typed."""
    if request.endpoint == "healthz":
        return  # asked every few seconds, and says nothing
    route = request.url_rule.rule if request.url_rule else "(no route)"
    seconds = time.perf_counter() - g.started
    logger.log(
        logging.ERROR if response.status_code >= 500 else logging.INFO,
        "%s %s %d in %.1f ms",
        request.method,
        route,
        response.status_code,
        seconds * 1000,
        extra={
            "http.request.method": request.method,
            "http.route": route,
            "http.response.status_code": response.status_code,
            "duration_ms": round(seconds * 1000, 3),
        }
        | ({ATTRIBUTE: g.fault} if "fault" in g else {}),
    )
