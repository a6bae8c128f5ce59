"""Callback: load what templates may use once, in Ansible's own process, instead of anew in each task's.

Ansible forks a process for each task. The first filter or test that a process meets, `length` even, makes it load the
files of all of them, and with the process that is gone again: 0.04 s a task. What is loaded before the fork is there
for every task.
"""

from __future__ import annotations

from typing import Any

from ansible.plugins.callback import CallbackBase
from ansible.plugins.loader import filter_loader, test_loader

DOCUMENTATION = """
name: watchpost_templates
type: aggregate
short_description: load filters and tests before the first task
description: Each is loaded once a run instead of once a task.
"""


class CallbackModule(CallbackBase):  # type: ignore[misc]  # Ansible has no types
    """What Ansible calls."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "watchpost_templates"

    def v2_playbook_on_play_start(self, play: Any) -> None:  # noqa: ANN401 - as Ansible calls it
        """Load them; roles have named theirs by now, and a second time costs nothing."""
        for loader in (filter_loader, test_loader):
            list(loader.all())
