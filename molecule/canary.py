"""Personal data in every field of every signal, a harmless marker beside it, and a look for both on the host's disk."""

import json
import random
import string
from dataclasses import dataclass, field

from tests.collector import requests

#: None of these may be found anywhere once they have gone through the Collector.
PERSONAL = (
    "anna.berg@example.org", "+49 30 1234567", "(415) 555-2671", "4111 1111 1111 1111", "5500005555555559",
    "DE89370400440532013000", "078-05-1120", "AB123456C", "203.0.113.77", "2001:db8:85a3::8a2e:370:7334",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl", "Bearer 0123456789abcdef", "AKIAIOSFODNN7EXAMPLE",
    "password=hunter2", "app:hunter2@db", "?q=berg&page=2",
)  # fmt: skip


def marker():
    """A word that is nowhere else."""
    return "".join(random.choices(string.ascii_lowercase, k=20))


@dataclass(frozen=True)
class Canary:
    """Text that holds all of it; `word` must be found where the rest must not."""

    word: str = field(default_factory=marker)

    @property
    def text(self):
        data = [item if item != "app:hunter2@db" else f"s://{item}.example/" for item in PERSONAL]
        return f"{self.word} of {' and '.join(data)} ends {self.word}"

    def requests(self):
        """The body of one OTLP request a signal."""
        return {signal: json.dumps(request) for signal, request in requests([self.text]).items()}


# Runs on the host: counts, for each word, the files below the directories that hold its bytes.
LOOK = """
import json, pathlib, sys
words, directories = json.load(sys.stdin)
found = {word: [] for word in words}
for directory in directories:
    for file in pathlib.Path(directory).rglob("*"):
        try:
            content = file.read_bytes() if file.is_file() else b""
        except FileNotFoundError:
            continue  # a store has just removed it
        for word in words:
            if word.encode() in content:
                found[word].append(str(file))
print(json.dumps(found))
"""


def on_disk(host, words, *directories):
    """Where the words' bytes lie on the host: {word: [file]}."""
    question = json.dumps([list(words), directories])
    return json.loads(host.check_output("printf %%s %s | python3 -c %s", question, LOOK))
