"""What the application refuses to be told, and how it says so."""

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


@pytest.mark.parametrize("url", ["", "tasks.db", "mysql://somewhere/tasks"])
def test_what_is_no_supported_database_is_refused(url):
    with pytest.raises(SettingsError, match="TASKBOARD_DATABASE_URL"):
        read(DATABASE_URL=url)


def test_password_in_an_address_is_not_repeated():
    with pytest.raises(SettingsError) as error:
        read(DATABASE_URL="mysql://me:hunter2@somewhere/tasks")
    assert "hunter2" not in str(error.value)


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
