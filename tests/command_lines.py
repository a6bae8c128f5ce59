"""Reads a command line as the project's own programs would: what it names must be there."""

import re
import shlex

import typer

from watchpost.cli import COMMANDS, command_line, commands_of
from watchpost.project import PROJECT

#: What `make` can be asked for.
TARGETS = frozenset(re.findall(r"^([a-z]+):", (PROJECT / "Makefile").read_text(), re.MULTILINE))


def command_of(line):
    """Return the command of `watchpost` that a line's words lead to, all sub-commands and options being there."""
    place = typer.main.get_command(command_line(*COMMANDS))
    for word in shlex.split(line, comments=True):
        if (inner := commands_of(place)) and not word.startswith("-"):
            assert word in inner, f"{word} is no sub-command"
            place = inner[word]
        elif option := re.match(r"--[a-z][a-z-]+", word):
            known = {flag for parameter in place.params for flag in parameter.opts + parameter.secondary_opts}
            assert option[0] in known | {"--help"}, f"{option[0]} is no option of {line}"
    return place
