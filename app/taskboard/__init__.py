"""A small task manager whose every request can be followed: traces, metrics and logs by OpenTelemetry.

Nothing is imported here: `opentelemetry-instrument` loads `taskboard.telemetry` before it has replaced Flask and
SQLAlchemy by their instrumented forms, and what was imported by then would stay without instrumentation.
"""
