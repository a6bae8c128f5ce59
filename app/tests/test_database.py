"""The schema's way from one version of the code to the next, and back."""

import multiprocessing

import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from taskboard import database
from taskboard.models import Base
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
