"""The schema's way from one version of the code to the next, and back."""

import multiprocessing
from pathlib import Path

import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from taskboard import database
from taskboard.models import Base
from taskboard.settings import Settings
from taskboard.settings import database_url as parse


def connect(url):
    return sa.create_engine(url)


def test_migrations_make_exactly_what_the_models_say(database_url):
    database.migrate(parse(database_url))
    with connect(database_url).connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []


def test_migrating_again_keeps_the_tasks(client, database_url):
    task = client.post("/api/tasks", json={"title": "Stay"}).json
    database.migrate(parse(database_url))
    assert client.get(f"/api/tasks/{task['id']}").json == task


def migrate_when_all_are_there(barrier, url):
    barrier.wait(60)
    database.migrate(parse(url))


def test_migrations_at_the_same_time_wait_for_each_other(database_url):
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(3)
    together = [context.Process(target=migrate_when_all_are_there, args=(barrier, database_url)) for _ in range(3)]
    for process in together:
        process.start()
    for process in together:
        process.join(60)
    assert [process.exitcode for process in together] == [0] * 3
    with connect(database_url).connect() as connection:
        assert connection.execute(sa.text("SELECT version_num FROM alembic_version")).all() == [("0001",)]


def test_schema_of_a_later_version_is_left_alone(client, database_url, caplog):
    with connect(database_url).begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
        connection.execute(sa.text("ALTER TABLE task ADD COLUMN colour VARCHAR"))
    database.migrate(parse(database_url))
    assert "9999 is newer" in caplog.text
    assert client.post("/api/tasks", json={"title": "Still works"}).status_code == 201


def test_readers_do_not_wait_for_a_writer(client, database_url):
    client.post("/api/tasks", json={"title": "Seen"})
    with connect(database_url).connect() as writer:
        writer.execute(sa.text("UPDATE task SET title = 'Unseen'"))  # not committed
        assert client.get("/api/tasks").json["items"][0]["title"] == "Seen"


def test_full_database_takes_no_more_says_so_and_goes_on_when_tasks_are_deleted(client, database_url, telemetry):
    from taskboard.application import create_app

    def create():
        return small.post("/api/tasks", json={"title": "x", "notes": "🌵" * 2000})

    settings = Settings(parse(database_url), max_mib=1)
    small = create_app(settings).test_client()
    made = []
    while (answer := create()).status_code == 201:
        made.append(answer.json["id"])
        assert len(made) < 200, "it is not bounded"
    assert len(made) > 50
    assert (answer.status_code, answer.content_type) == (507, "application/problem+json")
    assert "taskboard_max_mib" in answer.json["detail"]
    assert Path(settings.database_url.database).stat().st_size <= 2**20
    assert small.get(f"/api/tasks/{made[0]}").status_code == 200
    assert [log.severity_text for log in telemetry.logs()].count("ERROR") == 1
    for task in made[:2]:
        assert small.delete(f"/api/tasks/{task}").status_code == 204
    assert create().status_code == 201
    assert create().status_code == 201
    assert create().status_code == 507


def test_database_that_is_larger_than_allowed_takes_no_more_and_gives_back(client, database_url):
    from taskboard.application import create_app

    task = {"title": "x", "notes": "🌵" * 2000}
    made = [client.post("/api/tasks", json=task).json["id"] for _ in range(150)]
    small = create_app(Settings(parse(database_url), max_mib=1)).test_client()
    assert [small.post("/api/tasks", json=task).status_code for _ in range(3)][-1] == 507
    assert small.get(f"/api/tasks/{made[0]}").status_code == 200
    assert small.delete(f"/api/tasks/{made[0]}").status_code == 204
