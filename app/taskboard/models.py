"""What is stored."""

from __future__ import annotations

import enum
from datetime import UTC, datetime

from sqlalchemy import BigInteger, DateTime, Dialect, Enum, Integer, String, TypeDecorator
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

TITLE_LENGTH = 200
NOTES_LENGTH = 2000


class State(enum.StrEnum):
    """Where a task stands."""

    OPEN = "open"
    DONE = "done"


class UtcDateTime(TypeDecorator[datetime]):
    """A point in time in UTC: SQLite stores no zone, and PostgreSQL answers in that of its session."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Store every time as UTC."""
        return value and value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Return it in UTC, whatever zone the database gave it back with, or none."""
        return value and (value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC))


class Base(DeclarativeBase):
    """All tables."""


class Task(Base):
    """Something to be done."""

    __tablename__ = "task"

    # SQLite's own 64-bit row id is an INTEGER.
    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True)
    title: Mapped[str] = mapped_column(String(TITLE_LENGTH))
    notes: Mapped[str] = mapped_column(String(NOTES_LENGTH))
    state: Mapped[State] = mapped_column(
        Enum(State, native_enum=False, length=16, values_callable=lambda states: [state.value for state in states]),
        index=True,
    )
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime)
    completed_at: Mapped[datetime | None] = mapped_column(UtcDateTime)

    def set_state(self, state: State, now: datetime) -> None:
        """Move to a state; completing what is done already keeps the time at which it was."""
        if state is not self.state:
            self.completed_at = now if state is State.DONE else None
        self.state = state

    def as_dict(self) -> dict[str, object]:
        """Return the task as the API shows it; times are RFC 3339 in UTC."""
        return {
            "id": self.id,
            "title": self.title,
            "notes": self.notes,
            "state": self.state.value,
            "created_at": self.created_at.isoformat(),
            "updated_at": self.updated_at.isoformat(),
            "completed_at": self.completed_at.isoformat() if self.completed_at else None,
        }
