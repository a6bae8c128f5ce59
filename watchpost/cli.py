"""The `watchpost` command: one sub-command a concern, each in a module of its own."""

import typer

from watchpost import load, packages, secrets, testhost, verify
from watchpost.artifacts import cli as artifacts

app = typer.Typer(
    name="watchpost",
    help="Prepare, prove and look after a Watchpost appliance.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,  # locals may hold secrets
)

app.add_typer(artifacts.app, name="artifacts")
app.add_typer(secrets.app, name="secrets")
app.add_typer(testhost.app, name="testhost")
app.command("packages")(packages.command)
app.command("verify")(verify.verify)
app.command("load")(load.load)


def main() -> None:
    """Run the command line."""
    app()
