"""What is stored."""

from __future__ import annotations

import enum
from datetime import UTC, datetime

from sqlalchemy import DateTime, Dialect, Enum, String, TypeDecorator
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

TITLE_LENGTH = 200
NOTES_LENGTH = 2000


class State(enum.StrEnum):
    """Where a task stands."""

    OPEN = "open"
    DONE = "done"


class UtcDateTime(TypeDecorator[datetime]):
    """A point in time that keeps its zone in databases which store none, such as SQLite."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Store every time as UTC."""
        return value and value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Give the zone back to what a database returned without one."""
        return value and value.replace(tzinfo=UTC) if value and value.tzinfo is None else value


class Base(DeclarativeBase):
    """All tables."""


class Task(Base):
    """Something to be done."""

    __tablename__ = "task"

    id: Mapped[int] = mapped_column(primary_key=True)
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
