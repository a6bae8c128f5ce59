"""The action plugin that runs a command of Watchpost within Ansible."""

import importlib.util
from unittest.mock import MagicMock

from watchpost import cli
from watchpost.artifacts.progress import say, warn
from watchpost.project import PROJECT


def test_what_a_command_warns_of_is_shown_as_ansible_shows_warnings(monkeypatch):
    spec = importlib.util.spec_from_file_location(
        "watchpost_command", PROJECT / "roles/inputs/action_plugins/watchpost_command.py"
    )
    plugin = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(plugin)

    def command():
        say("tempo 2.8.4: fetching the release ...")
        warn("tempo: release not reachable")

    monkeypatch.setattr(cli, "main", command)
    monkeypatch.setattr(plugin.os, "chdir", lambda _: None)
    monkeypatch.setattr(plugin.sys, "argv", plugin.sys.argv)
    monkeypatch.setattr(plugin.sys, "path", list(plugin.sys.path))
    task = MagicMock(args={"argv": ["artifacts", "ensure"]}, async_val=0)
    result = plugin.ActionModule(task, MagicMock(), MagicMock(), None, None, None).run(task_vars={})
    assert result["warnings"] == ["tempo: release not reachable"]
    assert (result["rc"], "failed" in result) == (0, False)
