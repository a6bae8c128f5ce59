"""`python -m watchpost` is the same as the `watchpost` command."""

from watchpost.cli import main

main()
