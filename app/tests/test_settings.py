"""What the application refuses to be told, and how it says so."""

import json
import subprocess
import sys

import pytest
from taskboard.settings import Settings, SettingsError


def read(**environment):
    return Settings.from_environment({f"TASKBOARD_{name}": value for name, value in environment.items()})


@pytest.mark.parametrize("url", ["sqlite:///tasks.db", "sqlite:///./tasks.db", "sqlite:///data/tasks.db"])
def test_relative_path_is_refused_with_the_way_to_write_it(url):
    with pytest.raises(SettingsError, match=r"TASKBOARD_DATABASE_URL names the relative path .*four slashes"):
        read(DATABASE_URL=url)


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "sqlite:///file:tasks.db?uri=true"])
def test_database_without_a_file_is_refused(url):
    with pytest.raises(SettingsError, match="names no file"):
        read(DATABASE_URL=url)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "tasks.db",
        "postgresql+psycopg://me@host:port/tasks",
        "mysql://somewhere/tasks",
        "postgresql://me@127.0.0.1/tasks",  # for which SQLAlchemy would want another driver
        "postgresql+psycopg://127.0.0.1/tasks",
        "postgresql+psycopg://me@127.0.0.1",
        "postgresql+psycopg://me@127.0.0.1/tasks?host=db.example.org",
        "postgresql+psycopg://me@/tasks?host=db.example.org",
    ],
)
def test_what_is_no_supported_database_is_refused(url):
    with pytest.raises(SettingsError, match="TASKBOARD_DATABASE_URL"):
        read(DATABASE_URL=url)


@pytest.mark.parametrize(
    "url",
    [
        "mysql://me:hunter2@somewhere/tasks",
        "postgresql+psycopg://me:hunter2@127.0.0.1:no/tasks",
        "postgresql+psycopg://me:hunter2@127.0.0.1/tasks",
        "postgresql+psycopg://me@127.0.0.1/tasks?password=hunter2",
    ],
)
def test_password_in_an_address_is_refused_and_not_repeated(url):
    with pytest.raises(SettingsError, match="TASKBOARD_DATABASE_URL") as error:
        read(DATABASE_URL=url)
    assert "hunter2" not in str(error.value)


def test_refused_password_is_told_where_it_belongs():
    with pytest.raises(SettingsError, match=r"credential database_password .*taskboard_database_password"):
        read(DATABASE_URL="postgresql+psycopg://me:hunter2@127.0.0.1/tasks")


def test_password_comes_from_the_credential_and_is_shown_nowhere(tmp_path):
    (tmp_path / "database_password").write_text("hunter2\n")
    environment = {"TASKBOARD_DATABASE_URL": "postgresql+psycopg://me@127.0.0.1/tasks"}
    settings = Settings.from_environment(environment | {"CREDENTIALS_DIRECTORY": str(tmp_path)})
    assert settings.database_url.password == "hunter2"
    assert "hunter2" not in f"{settings} {settings.database_url}"


@pytest.mark.parametrize(
    ("where", "taken"),
    [
        ("@127.0.0.1/tasks", True),
        ("@localhost:5433/tasks", True),
        ("@[::1]/tasks", True),
        ("@/tasks", True),
        ("@/tasks?host=/run/postgresql", True),
        ("@db.example.org/tasks?sslmode=verify-full&sslrootcert=system", True),
        ("@db.example.org/tasks", False),
        ("@10.0.0.1/tasks?sslmode=require", False),
        ("@127.0.0.1.example.org/tasks", False),
    ],
)
def test_another_host_must_prove_who_it_is(where, taken):
    url = f"postgresql+psycopg://me{where}"
    if taken:
        assert read(DATABASE_URL=url).database_url.username == "me"
    else:
        with pytest.raises(SettingsError, match=r"TASKBOARD_DATABASE_URL .*sslmode=verify-full"):
            read(DATABASE_URL=url)


@pytest.mark.parametrize(
    ("faults", "complaint"),
    [
        ({"latncy": {"share": 1}}, "latncy is not a kind"),
        ({"latency": {"share": 0.5}}, "latency has the fields"),
        ({"error": {"share": 0.5, "milliseconds": 3}}, "error has the fields"),
        ({"error": {}}, "error has the fields"),
        ({"error": {"share": 1.1}}, "error.share must be"),
        ({"error": {"share": True}}, "error.share must be"),
        ({"error": {"share": "0.1"}}, "error.share must be"),
        ({"slow_query": {"share": 1, "milliseconds": 60_001}}, "slow_query.milliseconds must be"),
        ({"latency": {"share": 1, "milliseconds": 1.5}}, "latency.milliseconds must be"),
        ({"error": {"share": 1, "route": None}}, "error.route must be"),
        (["error"], "must map"),
    ],
)
def test_faults_that_mean_nothing_are_refused_by_name(tmp_path, faults, complaint):
    file = tmp_path / "faults.json"
    file.write_text(json.dumps(faults))
    with pytest.raises(SettingsError, match=rf"TASKBOARD_FAULTS: .*{complaint}"):
        read(DATABASE_URL="sqlite:////srv/tasks.db", FAULTS=str(file))


def test_faults_that_cannot_be_read_are_refused(tmp_path):
    with pytest.raises(SettingsError, match=r"TASKBOARD_FAULTS: .*cannot be read"):
        read(DATABASE_URL="sqlite:////srv/tasks.db", FAULTS=str(tmp_path / "none.json"))


@pytest.mark.parametrize("size", ["0", "-1", "1.5", "²", "many", "1000001"])
def test_size_that_means_nothing_is_refused(size):
    with pytest.raises(SettingsError, match="TASKBOARD_MAX_MIB is"):
        read(DATABASE_URL="sqlite:////srv/tasks.db", MAX_MIB=size)


def test_absolute_path_is_taken():
    settings = read(DATABASE_URL="sqlite:////srv/tasks.db", VERSION="1.2")
    assert settings.database_url.database == "/srv/tasks.db"
    assert settings.version == "1.2"


@pytest.mark.parametrize(("url", "code"), [("sqlite:////srv/tasks.db", 0), ("sqlite:///tasks.db", 1)])
def test_check_command_judges_the_environment(url, code, pytestconfig):
    done = subprocess.run(
        [sys.executable, "-m", "taskboard", "check"],
        env={"TASKBOARD_DATABASE_URL": url},
        cwd=pytestconfig.rootpath / "app",
        capture_output=True,
        text=True,
    )
    assert done.returncode == code
    assert bool(done.stderr) == bool(code)
