"""What can go wrong while artifacts are got or checked, in words for the person who runs the command."""

from pathlib import Path


class ArtifactError(Exception):
    """Something that the person must put right; the message names it."""


class Unreachable(ArtifactError):
    """A server gave no answer of its own (no name, no route, a proxy in between): another source may still do."""


class ChecksumMismatch(ArtifactError):
    """A file is not the one that was expected; both digests are named."""

    def __init__(self, what: str | Path, expected: str, found: str, advice: str) -> None:
        """Name the file, both SHA-256 digests, and what to do now."""
        super().__init__(f"{what} is refused\n  expected SHA-256 {expected}\n  but it has     {found}\n  {advice}")
