"""Options that several sub-commands share, and where their values come from when no flag gives them.

Flag, then environment, then configuration file, then default. The file is `watchpost.toml` in the working directory, or
whatever WATCHPOST_CONFIG names: at the top what all sub-commands share, in a table of its name what one of them takes.

    inventory = "inventory/my-vm"

    [gate]
    p95 = 300
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

CONFIG = "WATCHPOST_CONFIG"

Inventory = Annotated[
    str, typer.Option(envvar="WATCHPOST_INVENTORY", help="Inventory of the appliance; default: the one of ansible.cfg.")
]
RunDirectory = Annotated[
    Path,
    typer.Option(
        "--run",
        envvar="WATCHPOST_RUN",
        file_okay=False,
        help="Directory of the run: ledger, verdicts and report lie there.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the outcome as JSON, for machines.")]

#: What may stand at the top of the file: every sub-command that has such an option takes it.
SHARED = ("inventory", "run")

#: Default of RunDirectory, below the working directory.
RUN = Path(".watchpost") / "run"


class ConfigurationError(Exception):
    """The configuration file cannot be used; the message names it, and what in it is wrong."""


def configuration(commands: Collection[str], loaded: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, Any]]:
    """Return the defaults that the configuration file gives to the loaded sub-commands, by parameter.

    `commands` are all there are; `loaded` has the flags (without dashes in front) of those at hand, and the parameter
    that each sets. Whatever the file says that cannot be meant is refused by its name.
    """
    named = os.environ.get(CONFIG)
    file = Path(named or "watchpost.toml")
    if not named and not file.exists():
        return {}
    try:
        given = tomllib.loads(file.read_text())
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError(f"{file}: {error}") from error
    tables = {name: value for name, value in given.items() if isinstance(value, dict)}
    shared = {name: value for name, value in given.items() if name not in tables}
    if unknown := sorted(tables.keys() - set(commands)):
        raise ConfigurationError(f"{file}: [{unknown[0]}] is no sub-command; there are {', '.join(sorted(commands))}")
    if unknown := sorted(shared.keys() - set(SHARED)):
        raise ConfigurationError(
            f"{file}: {unknown[0]} is not shared by all; only {' and '.join(SHARED)} stand at the top"
        )
    defaults = {}
    for command, flags in loaded.items():
        table = tables.get(command, {})
        if unknown := sorted(table.keys() - flags.keys()):
            known = ", ".join(sorted(flags))
            raise ConfigurationError(f"{file}: [{command}] {unknown[0]} is no option of it; it has {known}")
        values = shared | table
        defaults[command] = {parameter: values[flag] for flag, parameter in flags.items() if flag in values}
    return defaults
