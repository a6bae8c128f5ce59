"""Personal data in every field of every signal, a harmless marker beside it, and a look for both on the host's disk."""

import base64
import json
import os
import random
import string
from dataclasses import dataclass, field

from faker import Faker
from google.protobuf import json_format
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.collector import requests

#: Says who the people are: others in each run, and the same for the same number.
SEED = int(os.environ.get("CANARY_SEED") or random.randrange(10**6))
#: By signal: where gRPC takes it, and as what.
GRPC = {
    "traces": ("/opentelemetry.proto.collector.trace.v1.TraceService/Export", ExportTraceServiceRequest),
    "logs": ("/opentelemetry.proto.collector.logs.v1.LogsService/Export", ExportLogsServiceRequest),
    "metrics": ("/opentelemetry.proto.collector.metrics.v1.MetricsService/Export", ExportMetricsServiceRequest),
}


def personal(seed):
    """Personal data of made-up people of several countries, and secrets of theirs."""
    people = [Faker(country) for country in ("en_US", "en_GB", "de_DE", "fr_FR", "es_ES", "pt_BR")]
    for fake in people:
        fake.seed_instance(seed)
    us, gb, de, fr, es, br = people
    some = string.ascii_letters + string.digits
    # What docs/redaction.md says that it cannot know: digits without any mark, and a network.
    phones = [next(n for n in iter(fake.phone_number, "") if not n.partition("x")[0].isdigit()) for fake in people[:4]]
    address = next(one for one in iter(us.ipv4_public, "") if not one.endswith(".0"))
    claims = base64.urlsafe_b64encode(json.dumps({"sub": us.uuid4()}).encode()).decode().rstrip("=")
    return (
        us.email(), de.company_email(), fr.email(), *(phone.partition("x")[0] for phone in phones),
        us.credit_card_number("visa16"), gb.credit_card_number("mastercard"), de.credit_card_number("amex"),
        gb.iban(), de.iban(), fr.iban().lower(), us.ssn(), es.nif(), br.cpf(), address, us.ipv6(),
        f"eyJhbGciOiJIUzI1NiJ9.{claims}.{us.sha256()}", f"Bearer {us.sha256()}",
        us.lexify("AKIA" + 16 * "?", letters=string.ascii_uppercase + string.digits),
        us.lexify("ghp_" + 36 * "?", letters=some), f"password={us.password(special_chars=False)}",
        f"s://{us.user_name()}:{us.password(special_chars=False)}@", f"?q={us.user_name()}&page=2",
    )  # fmt: skip


#: None of these may be found anywhere once they have gone through the Collector.
PERSONAL = personal(SEED)


def marker():
    """A word that is nowhere else."""
    return "".join(random.choices(string.ascii_lowercase, k=20))


@dataclass(frozen=True)
class Canary:
    """Text that holds all of it; `word` must be found where the rest must not."""

    word: str = field(default_factory=marker)

    @property
    def text(self):
        data = [f"{item}db.example/" if item.endswith("@") else item for item in PERSONAL]
        return f"{self.word} of {' and '.join(data)} ends {self.word}"

    def requests(self):
        """The body of one OTLP request a signal."""
        return {signal: json.dumps(request) for signal, request in requests([self.text]).items()}


def as_grpc(signal, body):
    """Return where gRPC takes a request of OTLP's JSON form, and the request as its message."""

    def ids(item):
        """Of ids OTLP's JSON has the digits, and that of protobuf's reader base64."""
        return {
            key: base64.b64encode(bytes.fromhex(value)).decode() if key in ("traceId", "spanId") else value
            for key, value in item.items()
        }

    path, message = GRPC[signal]
    return path, json_format.ParseDict(json.loads(body, object_hook=ids), message()).SerializeToString()


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
