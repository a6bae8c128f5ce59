"""What the pipeline costs: CPU seconds a million items, peak memory, and the highest rate that is held without refusal.

Two Collectors on a test host are compared, turn by turn: the appliance's own, with whatever its role renders (TLS,
token, redaction, sampling, queue on disk and the rest), and a plain one (OTLP in, OTLP out, neither TLS nor queue).
Both end in a third, the sink, which takes the engines' ports and identities and throws everything away: only the
pipeline is measured.
"""

import argparse
import http.client
import itertools
import json
import secrets
import shlex
import ssl
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import yaml
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from rich.console import Console
from rich.table import Table

from watchpost import testhost, verify_target
from watchpost.project import PROJECT, ansible

GROUPS = ["gateway", "otel_collector", "tempo", "loki", "prometheus"]  # the gateway: where the address is looked up
PLAIN_PORT, PLAIN_SINK = 24318, 24319
SIGNALS = ("traces", "logs", "metrics")
SIZE = 200  # items in a request
POOL = 32  # requests made in advance, for each signal
CONNECTIONS = 4
SPANS_PER_TRACE = 8
READY_SECONDS = 60  # in which a Collector must be ready, on however busy a machine
DRAINED_SECONDS = 10  # in which the queue must be empty after a rate that counts as held
DECIDED_SECONDS = 7  # in which the sampler has decided about all that was sent: its wait of 5 s, and its next look
IDLE = 0.1  # CPU seconds a second below which a Collector has nothing left to do


def say(text: str) -> None:
    """Show progress."""
    print(f"  {time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


HOST = testhost.Host("bench")

# --- what is sent ---


def attributes(**values: object) -> list[KeyValue]:
    """Return attributes; two underscores stand for a dot."""
    return [
        KeyValue(key=key.replace("__", "."), value=AnyValue(string_value=str(value))) for key, value in values.items()
    ]


def resource() -> Resource:
    """Return a service like most."""
    names = {"service__name": "shop", "service__namespace": "bench", "service__instance__id": "worker-1"}
    return Resource(attributes=attributes(**names, service__version="1.2.3", host__name="shop-1"))


#: Log lines, of twenty one each: a share that redaction lets pass at a glance, and one that it has to search.
LINES = (
    *["order {} of 3 items was placed and will leave on Monday"] * 12,
    *['level=info msg="order placed" order={} items=3 duration=12.5ms'] * 5,
    *['203.0.113.9 - - "GET /orders/{}?page=2 HTTP/1.1" 200 512'] * 2,
    "confirmation of order {} was sent to anna.berg@example.org",
)
#: SQL statements, of ten one each: most with a placeholder, one with the value itself.
STATEMENTS = (
    *["SELECT id, state, total FROM orders WHERE id = ?"] * 9,
    "SELECT id, state, total FROM orders WHERE customer = 'Anna Berg' AND total > 42.5",
)


def spans(number: int) -> bytes:
    """Make traces of a web request and its queries, with the attributes that instrumentation gives them."""
    request, now = ExportTraceServiceRequest(), time.time_ns()
    into = request.resource_spans.add(resource=resource()).scope_spans.add().spans
    for place in range(SIZE):
        root = place % SPANS_PER_TRACE == 0
        trace = TRACE_MARK + bytes([number, place // SPANS_PER_TRACE])
        common = {"trace_id": trace, "span_id": (place + 1).to_bytes(8, "big"), "end_time_unix_nano": now}
        if root:
            what = attributes(
                http__request__method="GET", http__route="/orders/{id}", http__response__status_code=200,
                url__path=f"/orders/{place}", url__scheme="https", server__address="shop.example.org",
                client__address="203.0.113.9", user_agent__original="Mozilla/5.0 (X11; Linux x86_64) Firefox/143.0",
            )  # fmt: skip
            into.add(name="GET /orders/{id}", kind=2, start_time_unix_nano=now - 30_000_000, attributes=what, **common)
        else:
            parent = (place - place % SPANS_PER_TRACE + 1).to_bytes(8, "big")
            what = attributes(
                db__system__name="postgresql", db__namespace="shop", db__operation__name="SELECT",
                db__query__text=STATEMENTS[place % len(STATEMENTS)], server__port=5432,
            )  # fmt: skip
            into.add(name="SELECT shop.orders", kind=3, parent_span_id=parent, start_time_unix_nano=now - 4_000_000,
                     attributes=what, **common)  # fmt: skip
    return request.SerializeToString()


def lines(number: int) -> bytes:
    """Make log records as an application writes them."""
    request, now = ExportLogsServiceRequest(), time.time_ns()
    into = request.resource_logs.add(resource=resource()).scope_logs.add().log_records
    for place in range(SIZE):
        into.add(
            time_unix_nano=now + place,
            severity_text="INFO",
            severity_number=9,
            body=AnyValue(string_value=LINES[place % len(LINES)].format(number * SIZE + place)),
            attributes=attributes(
                code__function__name="place_order", code__file__path="shop/orders.py", order__items=3
            ),
            trace_id=secrets.token_bytes(16),
            span_id=secrets.token_bytes(8),
        )
    return request.SerializeToString()


def points(number: int) -> bytes:
    """Make points of a counter with the labels of a web server."""
    request, now = ExportMetricsServiceRequest(), time.time_ns()
    metric = request.resource_metrics.add(resource=resource()).scope_metrics.add().metrics.add(name="shop.requests")
    metric.sum.aggregation_temporality, metric.sum.is_monotonic = 2, True
    for place in range(SIZE):
        labels = attributes(http__request__method="GET", http__route=f"/r{place}", http__response__status_code=200)
        metric.sum.data_points.add(
            attributes=labels, start_time_unix_nano=now - 10**9, time_unix_nano=now, as_int=number
        )
    return request.SerializeToString()


TRACE_MARK = bytes.fromhex("deadbeef00112233445566778899")  # begins every trace id that is made in advance
MAKE = {"traces": spans, "logs": lines, "metrics": points}


@dataclass
class Payload:
    """A request made in advance; before it is sent its trace ids are made new, so that a sampler sees new traces."""

    body: bytearray
    places: list[int] = field(default_factory=list)

    def fresh(self) -> bytes:
        """Return the body with trace ids that have not been before."""
        if self.places:
            new = secrets.token_bytes(14)
            for place in self.places:
                self.body[place : place + 14] = new
        return bytes(self.body)


def payload(signal: str, number: int) -> Payload:
    """Make a request in advance."""
    body = bytearray(MAKE[signal](number))
    places, at = [], body.find(TRACE_MARK)
    while at >= 0:
        places.append(at)
        at = body.find(TRACE_MARK, at + 1)
    return Payload(body, places)


# --- whom it is sent to ---


@dataclass
class Variant:
    """One of the two Collectors: where it listens, and its unit on the test host."""

    name: str
    unit: str
    url: str
    headers: dict[str, str]
    trust: ssl.SSLContext | None

    def connect(self) -> http.client.HTTPConnection:
        """Open a connection."""
        where = urlsplit(self.url)
        if self.trust:
            return http.client.HTTPSConnection(where.hostname, where.port, timeout=30, context=self.trust)
        return http.client.HTTPConnection(where.hostname, where.port, timeout=30)

    def restart(self) -> None:
        """Start anew, so that peak memory begins anew too."""
        shell(f"systemctl restart {self.unit}")
        end = time.monotonic() + READY_SECONDS
        while time.monotonic() < end:
            try:
                self.connect().connect()  # a Collector opens its ports when all behind them is ready
                return
            except OSError:
                time.sleep(0.1)  # between two tries
        raise SystemExit(f"{self.name} does not come up: {shell(f'journalctl -n 20 -o cat -u {self.unit}')}")

    def cpu(self) -> float:
        """Return the CPU seconds that it has used."""
        fields = self._proc("stat").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / 100  # clock ticks, 100 a second on Linux

    def peak_mib(self) -> float:
        """Return its peak resident memory in MiB, the pages of its program file included."""
        (peak,) = [line.split()[1] for line in self._proc("status").splitlines() if line.startswith("VmHWM")]
        return int(peak) / 1024

    def wait_until_idle(self, deadline: float) -> bool:
        """Wait until it has nothing left to do; tell whether that was before the deadline (seconds)."""
        time.sleep(DECIDED_SECONDS)  # it looks idle while nothing has been decided
        end = time.monotonic() + deadline
        while time.monotonic() < end:
            before, began = self.cpu(), time.monotonic()
            time.sleep(0.5)  # a while to measure over
            if (self.cpu() - before) / (time.monotonic() - began) < IDLE:
                return True
        return False

    def _proc(self, file: str) -> str:
        return shell(f"cat /proc/$(systemctl show --property=MainPID --value {self.unit})/{file}")


def shell(command: str) -> str:
    """Run a command on the test host."""
    share = ["-o", "ControlMaster=auto", "-o", f"ControlPath={HOST.sockets}/bench", "-o", "ControlPersist=60"]
    argv = HOST.ssh(command)
    done = subprocess.run([argv[0], *share, *argv[1:]], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{command}\nfailed: {done.stderr}")
    return done.stdout


@dataclass
class Sent:
    """What a load came to."""

    items: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    late: float = 0.0  # seconds behind its schedule at the end

    @property
    def refused(self) -> int:
        """Requests that were not taken at the first try."""
        return self.answers.total() - self.answers["200"]


def send(variant: Variant, pools: dict[str, list[Payload]], rate: float, seconds: float) -> Sent:
    """Send `rate` items a second for a while, the signals in turn, over a few connections."""
    sent, lock, turn = Sent(), threading.Lock(), itertools.cycle(pools)
    interval = SIZE * CONNECTIONS / rate

    def keep_sending(number: int) -> None:
        connection = variant.connect()
        begin = time.monotonic() + number * interval / CONNECTIONS
        for count in itertools.count():
            due = begin + count * interval
            if due > begin + seconds:
                return
            time.sleep(max(0.0, due - time.monotonic()))
            if time.monotonic() - begin > seconds * 1.2 + 2:
                return  # hopelessly behind
            with lock:
                signal = next(turn)
                pool = pools[signal]
                one = pool.pop()
            try:
                connection.request("POST", f"/v1/{signal}", one.fresh(), HEADERS | variant.headers)
                answer = connection.getresponse()
                answer.read()
                status = str(answer.status)
            except (OSError, http.client.HTTPException) as error:
                status, connection = type(error).__name__, variant.connect()
            with lock:
                pool.append(one)
                sent.items += SIZE
                sent.answers[status] += 1
                sent.late = max(0.0, time.monotonic() - due)

    with ThreadPoolExecutor(CONNECTIONS) as threads:
        for job in [threads.submit(keep_sending, number) for number in range(CONNECTIONS)]:
            job.result()
    return sent


HEADERS = {"Content-Type": "application/x-protobuf"}


# --- the test host ---


def endpoints() -> dict[str, dict[str, dict[str, object]]]:
    """Return the registry of endpoints."""
    return dict(yaml.safe_load((PROJECT / "group_vars/all/endpoints.yml").read_text())["watchpost_endpoints"])


def sink_configuration() -> dict[str, object]:
    """Return a Collector that takes the place of all three engines, and throws everything away."""
    ports = endpoints()

    def receiver(component: str, endpoint: str, path: str) -> dict[str, object]:
        tls = {
            name: f"/etc/watchpost/pki/{component}/tls.{end}"
            for name, end in (("cert_file", "crt"), ("key_file", "key"))
        }
        tls["client_ca_file"] = "/etc/watchpost/pki/ca.crt"
        http = {"endpoint": f"127.0.0.1:{ports[component][endpoint]['port']}", "tls": tls}
        http |= {f"{signal}_url_path": f"{path}/v1/{signal}" for signal in SIGNALS}
        return {"protocols": {"http": http}}

    receivers = {
        "otlp/tempo": receiver("tempo", "otlp_http", ""),
        "otlp/loki": receiver("loki", "http", "/otlp"),
        "otlp/prometheus": receiver("prometheus", "http", "/api/v1/otlp"),
        "otlp/plain": {"protocols": {"http": {"endpoint": f"127.0.0.1:{PLAIN_SINK}"}}},
    }
    return collector(receivers, {"debug": {"verbosity": "basic", "sampling_initial": 1, "sampling_thereafter": 10**9}})


def plain_configuration() -> dict[str, object]:
    """Return a Collector with nothing but OTLP in and OTLP out."""
    out = {"endpoint": f"http://127.0.0.1:{PLAIN_SINK}", "sending_queue": {"enabled": False}}
    return collector({"otlp": {"protocols": {"http": {"endpoint": f"0.0.0.0:{PLAIN_PORT}"}}}}, {"otlp_http": out})


def collector(receivers: dict[str, object], exporters: dict[str, object]) -> dict[str, object]:
    """Return the configuration of a Collector that leads each signal from all receivers to all exporters."""
    pipeline = {"receivers": list(receivers), "exporters": list(exporters)}
    telemetry = {"metrics": {"level": "none"}, "logs": {"level": "error"}}
    return {
        "receivers": receivers,
        "exporters": exporters,
        "service": {"pipelines": dict.fromkeys(SIGNALS, pipeline), "telemetry": telemetry},
    }


def prepare(sampling: float) -> dict[str, Variant]:
    """Boot the test host, put the appliance's Collector on it, and start the other two.

    `sampling` is the percentage of traces that it keeps; with 100 nothing is sampled.
    """
    inventory = testhost.up(HOST, groups=GROUPS)
    # On a host that was kept they still have the engines' ports; on a new one there are none.
    shell("systemctl stop bench-sink bench-plain 2>/dev/null || true")
    # The load comes from one client, which must not be held back.
    limits = {"host_firewall_extra_ports": [PLAIN_PORT], "host_client_mib_per_second": 1000}
    extra = json.dumps(limits | {"otel_collector_sampling_percent": sampling})
    done = subprocess.run(
        ansible("ansible-playbook", "-i", str(inventory), "site.yml", "-e", extra),
        cwd=PROJECT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(done.stdout[-3000:] + done.stderr)
    shell("systemctl stop watchpost-tempo watchpost-loki watchpost-prometheus; mkdir -p /run/bench")
    for name, configuration in (("sink", sink_configuration()), ("plain", plain_configuration())):
        shell(f"printf %s {shlex.quote(json.dumps(configuration))} >/run/bench/{name}.yml")
        unit = (
            f"[Service]\nExecStart=/opt/watchpost/otel_collector/current/bin/otelcol --config=/run/bench/{name}.yml\n"
        )
        shell(f"printf %s {shlex.quote(unit)} >/run/systemd/system/bench-{name}.service; systemctl daemon-reload")
        shell(f"systemctl restart bench-{name}")
    target = verify_target.find(str(inventory))
    token = {"Authorization": f"Bearer {target.token}"}
    address = urlsplit(target.ingest).hostname
    return {
        "plain": Variant("plain", "bench-plain", f"http://{address}:{PLAIN_PORT}", {}, None),
        "whole": Variant("whole", "watchpost-otel-collector", target.ingest, token, target.trust()),
    }


# --- measuring ---


@dataclass
class Cost:
    """What one run of one Collector cost."""

    cpu_per_million: float  # seconds
    peak_mib: float
    sent: Sent


def measure(variant: Variant, pools: dict[str, list[Payload]], rate: float, seconds: float) -> Cost:
    """Send at a fixed rate and measure what it cost."""
    variant.restart()
    send(variant, pools, rate / 4, 2)  # connections, caches
    variant.wait_until_idle(DRAINED_SECONDS)
    before = variant.cpu()
    sent = send(variant, pools, rate, seconds)
    variant.wait_until_idle(60)
    return Cost((variant.cpu() - before) / sent.items * 1e6, variant.peak_mib(), sent)


def held(variant: Variant, pools: dict[str, list[Payload]], rate: float, seconds: float) -> bool:
    """Tell whether a rate is held: nothing refused, the schedule kept, the queue empty soon after."""
    sent = send(variant, pools, rate, seconds)
    drained = variant.wait_until_idle(DRAINED_SECONDS)
    good = not sent.refused and sent.late < 1 and drained
    why = (
        "held"
        if good
        else f"refused {dict(sent.answers)}"
        if sent.refused
        else f"{sent.late:.1f} s late"
        if sent.late >= 1
        else "queue not empty"
    )
    say(f"{variant.name}: {rate:.0f} items a second for {seconds:.0f} s: {why}")
    if not good:
        variant.wait_until_idle(120)
    return good


def highest_rate(variant: Variant, pools: dict[str, list[Payload]], seconds: float) -> tuple[float, float]:
    """Return the highest rate held for `seconds`, within a tenth, and the peak memory in MiB meanwhile."""
    variant.restart()
    rate = 4000.0
    while rate < 200_000 and held(variant, pools, rate * 1.3, 10):
        rate *= 1.3
    while not held(variant, pools, rate, seconds):
        rate *= 0.9
    return rate, variant.peak_mib()


def main() -> None:
    """Measure, and print two tables."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rate", type=float, default=10000, help="items a second while CPU is measured (10000)")
    options.add_argument("--seconds", type=float, default=15, help="how long each such run lasts (15)")
    options.add_argument("--rounds", type=int, default=3, help="how often the two take turns (3)")
    options.add_argument(
        "--hold", type=float, default=300, help="seconds that the highest rate must be held; 0 leaves it out (300)"
    )
    options.add_argument(
        "--sampling", type=float, default=10, help="percentage of traces that is kept; 100: no sampling (10)"
    )
    options.add_argument("--host", default="bench", help="name of the test host (bench)")
    options.add_argument("--keep", action="store_true", help="leave the test host running")
    given = options.parse_args()
    global HOST
    HOST = testhost.Host(given.host)
    pools = {signal: [payload(signal, number) for number in range(POOL)] for signal in SIGNALS}
    try:
        variants = prepare(given.sampling)
        costs: dict[tuple[str, str], list[Cost]] = {}
        for number, signal, variant in itertools.product(range(given.rounds), SIGNALS, variants.values()):
            cost = measure(variant, {signal: pools[signal]}, given.rate, given.seconds)
            costs.setdefault((signal, variant.name), []).append(cost)
            say(f"round {number + 1}: {signal} through {variant.name}: {cost.cpu_per_million:.1f} CPU s a million, "
                f"peak {cost.peak_mib:.0f} MiB, {cost.sent.refused} requests refused")  # fmt: skip
        show_costs(costs, given)
        if given.hold:
            rates = {name: highest_rate(variant, pools, given.hold) for name, variant in variants.items()}
            show_rates(rates, given.hold)
    finally:
        if not given.keep:
            testhost.down(HOST)


def show_costs(costs: dict[tuple[str, str], list[Cost]], given: argparse.Namespace) -> None:
    """Print the cost of each signal through both Collectors: medians."""
    table = Table(
        "Signal", title=f"{given.rate:.0f} items/s, {given.seconds:.0f} s, median of {given.rounds} (lowest to highest)"
    )
    for heading in ("Plain, CPU s a million", "Whole", "Ratio", "Plain, peak MiB", "Whole"):
        table.add_column(heading, justify="right")
    for signal in SIGNALS:
        plain, whole = (costs[signal, name] for name in ("plain", "whole"))
        cpu = [[cost.cpu_per_million for cost in runs] for runs in (plain, whole)]
        memory = [f"{max(cost.peak_mib for cost in runs):.0f}" for runs in (plain, whole)]
        both = [f"{statistics.median(runs):.1f} ({min(runs):.1f} to {max(runs):.1f})" for runs in cpu]
        table.add_row(signal, *both, f"{statistics.median(cpu[1]) / statistics.median(cpu[0]):.1f}", *memory)
    Console(width=120, highlight=False).print(table)


def show_rates(rates: dict[str, tuple[float, float]], seconds: float) -> None:
    """Print the highest rates."""
    table = Table("Collector", title=f"Highest rate held for {seconds:.0f} s, a third of each signal")
    for heading in ("Items a second", "Peak MiB"):
        table.add_column(heading, justify="right")
    for name, (rate, peak) in rates.items():
        table.add_row(name, f"{rate:.0f}", f"{peak:.0f}")
    Console(width=120, highlight=False).print(table)


if __name__ == "__main__":
    main()
