"""The `watchpost` command: one sub-command a concern, each in a module of its own."""

import sys
from importlib import import_module
from typing import Any

import click
import typer
import typer.main

from watchpost.options import ConfigurationError, configuration

#: Sub-command -> its module, and what to take from there. All of them together take a second to load, and a run of
#: site.yml calls the command several times: so only the one that is asked for is loaded.
COMMANDS = {
    "artifacts": ("watchpost.artifacts.cli", "app"),
    "secrets": ("watchpost.secrets", "app"),
    "backup": ("watchpost.backup", "app"),
    "testhost": ("watchpost.testhost", "app"),
    "packages": ("watchpost.packages", "command"),
    "verify": ("watchpost.verify", "verify"),
    "doctor": ("watchpost.doctor", "doctor"),
    "slo": ("watchpost.slo.cli", "app"),
    "load": ("watchpost.load", "load"),
    "traffic": ("watchpost.delivery.traffic", "traffic"),
    "gate": ("watchpost.delivery.gate", "gate"),
    "report": ("watchpost.delivery.report", "report"),
    "pipeline": ("watchpost.delivery.pipeline", "pipeline"),
    "dashboards": ("watchpost.dashboards.cli", "app"),
    "alert": ("watchpost.alert", "alert"),
}


def command_line(*names: str) -> typer.Typer:
    """Return the command line with these of its sub-commands."""
    app = typer.Typer(
        name="watchpost",
        help="Prepare, prove and look after a Watchpost appliance.",
        no_args_is_help=True,
        rich_markup_mode="rich",
        pretty_exceptions_show_locals=False,  # locals may hold secrets
    )
    app.callback()(lambda: None)  # so that a single sub-command is one still
    for name in names:
        module, attribute = COMMANDS[name]
        command = getattr(import_module(module), attribute)
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name)
        else:
            app.command(name)(command)
    return app


def commands_of(command: object) -> dict[str, Any]:
    """Return the commands of a group by name, of anything else none."""
    return getattr(command, "commands", {})  # no isinstance: Typer brings a Click of its own


def flags(command: click.Command) -> dict[str, str]:
    """Return a command's flags, without dashes in front, and the parameter that each sets; of a group all commands'."""
    if inner := commands_of(command):
        return {flag: name for each in inner.values() for flag, name in flags(each).items()}
    return {flag.lstrip("-"): option.name for option in command.params for flag in option.opts if option.name}


def main() -> None:
    """Run the command line; a configuration file gives defaults (see watchpost.options)."""
    asked = sys.argv[1:2]
    names = asked if set(asked) <= set(COMMANDS) and asked else list(COMMANDS)
    app = command_line(*names)
    group = typer.main.get_command(app)
    commands = commands_of(group)
    try:
        given = configuration(COMMANDS, {name: flags(command) for name, command in commands.items()})
    except ConfigurationError as error:
        sys.stderr.write(f"watchpost: {error}\n")
        sys.exit(2)  # wrong usage
    # Those of a group go to each of its commands, of which each takes what it knows.
    defaults = {name: dict.fromkeys(commands_of(commands[name]), values) or values for name, values in given.items()}
    group(default_map=defaults, auto_envvar_prefix="WATCHPOST")
