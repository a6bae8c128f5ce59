"""The `watchpost` command: one sub-command a concern, each in a module of its own."""

import sys
from importlib import import_module

import typer

#: Sub-command -> its module, and what to take from there. All of them together take a second to load, and a run of
#: site.yml calls the command several times: so only the one that is asked for is loaded.
COMMANDS = {
    "artifacts": ("watchpost.artifacts.cli", "app"),
    "secrets": ("watchpost.secrets", "app"),
    "testhost": ("watchpost.testhost", "app"),
    "packages": ("watchpost.packages", "command"),
    "verify": ("watchpost.verify", "verify"),
    "slo": ("watchpost.slo.cli", "app"),
    "load": ("watchpost.load", "load"),
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


def main() -> None:
    """Run the command line."""
    asked = sys.argv[1:2]
    command_line(*(asked if set(asked) <= set(COMMANDS) and asked else COMMANDS))()
