"""What a person sees of a long step: that it began, that it still runs, how long it took. All of it on stderr."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

_BEAT = 20.0  # seconds between two signs of life
WARNING = "Warning: "


def say(text: str) -> None:
    """Write one line to stderr at once."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def warn(text: str) -> None:
    """Say what the user should know even though all goes on; a run of Ansible shows it as a warning."""
    say(f"{WARNING}{text}")


def elapsed(seconds: float) -> str:
    """Return a duration as people say it."""
    whole = round(seconds)
    return f"{whole} s" if whole < 60 else f"{whole // 60} min {whole % 60} s"


@contextmanager
def step(what: str, detail: str = "") -> Iterator[None]:
    """Announce a step, show now and then that it still runs, and say how long it took."""
    began = time.monotonic()
    over = threading.Event()

    def beat() -> None:
        while not over.wait(_BEAT):
            say(f"{what}: {elapsed(time.monotonic() - began)} so far")

    say(f"{what} ... {detail}".rstrip())
    watch = threading.Thread(target=beat, daemon=True)
    watch.start()
    try:
        yield
        say(f"{what}: done in {elapsed(time.monotonic() - began)}")
    finally:
        over.set()
        watch.join()
