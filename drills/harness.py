"""What drills share: an appliance on a test host that can be broken, a load with its ledger, and the verdict.

Used by drills/ and by the short selection in molecule/appliance.
"""

import contextlib
import json
import random
import re
import shlex
import shutil
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import httpx
import yaml
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

from watchpost import verify_target
from watchpost.load import ingest_client, remarks
from watchpost.load_read import Count, Reader
from watchpost.load_send import Ledger, Load, Sender, Signal, Telemetry
from watchpost.project import PROJECT, ansible
from watchpost.testhost import Host
from watchpost.verify_grafana import Span, spans_of

READY_SECONDS = 10  # in which a broken service must be ready again, by itself

#: Where each service says that it is ready.
READY = {
    "otel_collector": ("health", "/"),
    "tempo": ("http", "/ready"),
    "loki": ("http", "/ready"),
    "prometheus": ("http", "/-/ready"),
}
ENGINES = {"tempo": Signal.TRACES, "loki": Signal.LOGS, "prometheus": Signal.METRICS}

# Begins what runs on the host: the operator's way to ask over TLS.
CONTEXT = """
import json, ssl, sys, urllib.request
context = ssl.create_default_context(cafile="/etc/watchpost/pki/ca.crt")
context.load_cert_chain("/etc/watchpost/pki/operator/tls.crt", "/etc/watchpost/pki/operator/tls.key")
"""
# Runs on the host: does something, then asks each place until it answers 200 from a process that is not the old one.
BREAK = (
    CONTEXT
    + """
import subprocess, time
command, places, units, deadline = json.loads(sys.argv[1])
def pid(unit):
    return subprocess.run(["systemctl", "show", "--property=MainPID", "--value", unit], capture_output=True).stdout
old = {unit: pid(unit) for unit in units}
broken = time.time()
subprocess.run(command, shell=True, check=True)
ready = {}
while len(ready) < len(places) and time.time() < broken + deadline:
    for unit, url in zip(units, places):
        if unit not in ready and pid(unit) != old[unit]:
            try:
                urllib.request.urlopen(url, timeout=2, context=context).read()
                ready[unit] = time.time() - broken
            except OSError:
                pass  # not yet
    time.sleep(0.1)  # between two questions
print(json.dumps([broken, ready]))
"""
)

# Runs on the host: asks a place once.
ASK = (
    CONTEXT
    + """
urllib.request.urlopen(json.loads(sys.argv[1]), timeout=2, context=context).read()
print("ready")
"""
)


#: Collector settings that switch a protection off: with them a drill must end red.
IN_MEMORY = {"sending_queue": {"storage": None}}
NO_RETRY = {"retry_on_failure": {"enabled": False}}

# A test host's /dev is its own, and has none.
LOOP_DEVICES = (
    "for n in $(seq 0 7); do test -e /dev/loop$n || mknod /dev/loop$n b 7 $n; done; "
    "test -e /dev/loop-control || mknod /dev/loop-control c 10 237"
)


def say(text: str) -> None:
    """Show progress: a drill takes minutes."""
    print(f"    {time.strftime('%H:%M:%S')} {text}", file=sys.__stderr__, flush=True)


def unit_name(component: str) -> str:
    """Return a component's unit."""
    return f"watchpost-{component.replace('_', '-')}.service"


def call_grpc(url: str, identity: Path, packed: bytes, encoding: str) -> str:
    """Send one gRPC message that is packed already; return gRPC's status code, or what came in its place.

    No library would send such messages, so curl does. `identity` is a directory with ca.crt, tls.crt and tls.key.
    """
    proof = ["--cacert", f"{identity}/ca.crt", "--cert", f"{identity}/tls.crt", "--key", f"{identity}/tls.key"]
    says = ["Content-Type: application/grpc", "TE: trailers", f"grpc-encoding: {encoding}"]
    command = ["curl", "--silent", "--max-time", "60", "--http2", *proof, *(f"-H{line}" for line in says)]
    command += ["--data-binary", "@-", "--output", "/dev/null", "--dump-header", "-", url]
    message = b"\x01" + len(packed).to_bytes(4, "big") + packed
    done = subprocess.run(command, input=message, capture_output=True, check=False)
    status = re.search(rb"^grpc-status: (\d+)", done.stdout, re.MULTILINE)
    http = re.search(rb"^HTTP/2 (\d+)", done.stdout, re.MULTILINE)
    return status[1].decode() if status else f"HTTP {http[1].decode()}" if http else f"curl: error {done.returncode}"


@contextlib.contextmanager
def forwarded(host: Host, ports: Mapping[str, object]) -> Iterator[dict[str, str]]:
    """Reach ports of a host's loopback through SSH: return a socket on this machine for each."""
    with tempfile.TemporaryDirectory() as folder:
        sockets = {name: f"{folder}/{name}" for name in ports}
        command = host.ssh()
        forwards = [f"-L{sockets[name]}:127.0.0.1:{port}" for name, port in ports.items()]
        tunnel = subprocess.Popen([command[0], "-N", *forwards, *command[1:]])
        try:
            while not all(Path(path).exists() for path in sockets.values()):
                assert tunnel.poll() is None, "SSH does not forward"
                time.sleep(0.1)  # until SSH has connected
            yield sockets
        finally:
            tunnel.terminate()
            tunnel.wait()


def through(socket: str, trust: ssl.SSLContext) -> httpx.Client:
    """Return a client of what is behind a forwarded socket."""
    transport = httpx.HTTPTransport(verify=trust, uds=socket)
    return httpx.Client(base_url="https://127.0.0.1", transport=transport, timeout=30)


@dataclass
class Outcome:
    """What a drill found out, for the table at the end."""

    name: str
    acknowledged: int = 0
    refused: int = 0
    lost: int = 0
    window: float = 0.0  # seconds before a break in which whatever was lost had been acknowledged
    ready: list[float] = field(default_factory=list)  # seconds until ready after each break
    remarks: list[str] = field(default_factory=list)


@dataclass
class Running:
    """A load that runs in the background, and its end."""

    load: Load
    began: float
    breaks: list[float] = field(default_factory=list)  # Unix seconds
    counts: dict[Signal, Count] = field(default_factory=dict)
    lost: dict[Signal, set[str]] = field(default_factory=dict)

    @property
    def ledgers(self) -> dict[Signal, Ledger]:
        """Return the ledgers of the signals that are sent."""
        return {signal: self.load.sender.ledgers[signal] for signal in self.load.signals}

    def acknowledged(self) -> int:
        """Tell how many items are acknowledged so far."""
        return sum(len(ledger.acknowledged) for ledger in self.ledgers.values())

    def retries(self) -> int:
        """Tell how often something was sent again so far."""
        return sum(ledger.retries for ledger in self.ledgers.values())

    def window(self, signal: Signal) -> float:
        """Return the longest time from a lost item's acknowledgement until the next break; infinite without one."""
        acknowledged, longest = self.ledgers[signal].acknowledged, 0.0
        for key in self.lost[signal]:
            next_break = min((at for at in self.breaks if at >= acknowledged[key] - 1), default=float("inf"))
            longest = max(longest, next_break - acknowledged[key])
        return longest


@dataclass
class Appliance:
    """The whole appliance on a test host."""

    host: Host

    @cached_property
    def endpoints(self) -> dict[str, dict[str, dict[str, object]]]:
        """The registry of endpoints."""
        text = (PROJECT / "group_vars/all/endpoints.yml").read_text()
        return dict(yaml.safe_load(text)["watchpost_endpoints"])

    @cached_property
    def target(self) -> verify_target.Target:
        """Where it is, and how it is trusted."""
        return verify_target.find(str(self.host.inventory))

    def shell(self, command: str, check: bool = True) -> str:
        """Run a command on the host and return what it prints."""
        done = subprocess.run(self.host.ssh(command), capture_output=True, text=True, check=False)
        if check and done.returncode:
            raise AssertionError(f"{command}\nfailed ({done.returncode}): {done.stdout}{done.stderr}")
        return done.stdout.strip()

    def site(self, *options: str, **variables: object) -> None:
        """Run site.yml with some variables changed, as a user would."""
        command = ansible("ansible-playbook", "-i", str(self.host.inventory), "site.yml", "-e", json.dumps(variables))
        done = subprocess.run([*command, *options], cwd=PROJECT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    def url(self, component: str) -> str:
        """Return where a component says that it is ready."""
        endpoint, path = READY[component]
        return f"https://127.0.0.1:{self.endpoints[component][endpoint]['port']}{path}"

    def breaking(self, command: str, *components: str, deadline: float = 60) -> tuple[float, dict[str, float]]:
        """Run a command that ends components; return when (Unix seconds), and after how long each was ready again."""
        places, units = [self.url(one) for one in components], [unit_name(one) for one in components]
        question = json.dumps([command, places, units, deadline])
        broken, ready = json.loads(self.shell(f"python3 -c {shlex.quote(BREAK)} {shlex.quote(question)}"))
        missing = set(units) - set(ready)
        assert not missing, f"not ready within {deadline:g} s, by itself: {', '.join(missing)}\n" + "\n".join(
            self.shell(f"journalctl -n 20 --no-pager -o cat -u {unit}") for unit in missing
        )
        return broken, ready

    def kill(self, *components: str) -> tuple[float, dict[str, float]]:
        """Kill components without warning, all at once."""
        units = " ".join(unit_name(one) for one in components)
        return self.breaking(f"systemctl kill --signal=KILL {units}", *components)

    def kill_and_leave(self, component: str) -> None:
        """Kill a component and do not wait."""
        self.shell(f"systemctl kill --signal=KILL {unit_name(component)}")

    def wait_until_ready(self, *components: str, deadline: float = 90) -> float:
        """Wait until components, all of them by default, are ready; return for how many seconds."""
        began = time.monotonic()
        for component in components or READY:
            question = json.dumps(self.url(component))
            while self.shell(f"python3 -c {shlex.quote(ASK)} {shlex.quote(question)}", check=False) != "ready":
                assert time.monotonic() < began + deadline, f"{component} is not ready after {deadline:g} s"
                time.sleep(0.2)  # between two questions
        return time.monotonic() - began

    def restart(self, component: str) -> float:
        """Restart a component in an orderly way; return the seconds until it was ready."""
        _, ready = self.breaking(f"systemctl restart {unit_name(component)}", component, deadline=90)
        return ready[unit_name(component)]

    @contextlib.contextmanager
    def stopped(self, component: str) -> Iterator[None]:
        """Have a component stopped for a while."""
        self.shell(f"systemctl stop {unit_name(component)}")
        try:
            yield
        finally:
            self.shell(f"systemctl start {unit_name(component)}")

    @contextlib.contextmanager
    def arguments(self, component: str, *more: str) -> Iterator[None]:
        """Have a component run with more arguments for a while."""
        unit = unit_name(component)
        (command,) = re.findall(r"^ExecStart=(.+)$", self.shell(f"cat /etc/systemd/system/{unit}"), re.MULTILINE)
        folder = f"/run/systemd/system/{unit}.d"
        text = f"[Service]\nExecStart=\nExecStart={command} {' '.join(more)}\n"
        self.shell(
            f"mkdir -p {folder} && printf %s {shlex.quote(text)} >{folder}/drill.conf && systemctl daemon-reload"
        )
        try:
            self.restart(component)
            yield
        finally:
            self.shell(f"rm -r {folder} && systemctl daemon-reload")
            self.restart(component)

    @contextlib.contextmanager
    def unchecked(self, component: str) -> Iterator[None]:
        """Have a component start without what its unit looks at before, for a while; it is not restarted for that."""
        folder = f"/run/systemd/system/{unit_name(component)}.d"
        text = r"[Service]\nExecStartPre=\n"
        self.shell(f"mkdir -p {folder} && printf '{text}' >{folder}/unchecked.conf && systemctl daemon-reload")
        try:
            yield
        finally:
            self.shell(f"rm {folder}/unchecked.conf && systemctl daemon-reload")

    @contextlib.contextmanager
    def collector_with(self, **overlay: object) -> Iterator[None]:
        """Have the Collector run with more configuration laid over its own for a while."""
        path = "/run/watchpost-drill.yml"
        self.shell(f"printf %s {shlex.quote(json.dumps(overlay))} >{path} && chmod 644 {path}")
        with self.arguments("otel_collector", f"--config={path}"):
            yield

    @contextlib.contextmanager
    def load(
        self,
        seconds: float = 600,
        rate: float = 200,
        shift: float = 0,
        signals: tuple[Signal, ...] = tuple(Signal),
        retry_for: float = 120,
        service: str = "",
        client: httpx.Client | None = None,
    ) -> Iterator[Running]:
        """Send in the background until the block ends, `seconds` at most; by another client, to wherever that leads."""
        with contextlib.nullcontext(client) if client else ingest_client(self.target) as client:
            telemetry = Telemetry(shift=shift, service=service)
            load = Load(Sender(client, retry_for), telemetry, signals, rate, seconds)
            running = Running(load, time.time())
            failed: list[BaseException] = []
            thread = threading.Thread(target=lambda: _note(load.run, failed))
            thread.start()
            try:
                yield running
            finally:
                load.stop.set()
                thread.join()
            if failed:
                raise failed[0]

    def read_back(self, running: Running, timeout: float = 60) -> None:
        """Look for everything that was acknowledged; `timeout` seconds at most."""
        with self.stores() as stores:
            reader = Reader(stores, running.load.telemetry, running.began)
            counts = reader.wait(running.ledgers, timeout)
        running.counts = {count.signal: count for count in counts}
        running.lost = {signal: reader.missing(signal, ledger) for signal, ledger in running.ledgers.items()}

    @contextlib.contextmanager
    def identity(self) -> Iterator[Path]:
        """Have the operator's certificate and key here, tls.crt and tls.key, for a while."""
        with tempfile.TemporaryDirectory() as folder:
            for name in ("tls.crt", "tls.key"):
                Path(folder, name).write_text(self.shell(f"cat /etc/watchpost/pki/operator/{name}") + "\n")
            yield Path(folder)

    @contextlib.contextmanager
    def grpc(self) -> Iterator[Callable[[str, bytes, str], str]]:
        """Send packed gRPC messages (path, bytes, encoding) as the operator; what comes back is told by `call_grpc`."""
        where = f"https://{httpx.URL(self.target.ingest).host}:{self.endpoints['gateway']['otlp_grpc']['port']}"
        with self.identity() as folder:
            shutil.copy(self.target.ca, folder / "ca.crt")
            yield lambda path, packed, encoding: call_grpc(where + path, folder, packed, encoding)

    @contextlib.contextmanager
    def gateway_with(self, old: str, new: str) -> Iterator[None]:
        """Have the gateway run with a part of its configuration replaced for a while."""
        path = "/etc/watchpost/gateway/current/nginx.conf"
        text = self.shell(f"cat {path}") + "\n"
        assert text.count(old) == 1, f"{path} does not hold {old!r} once"

        def put(content: str) -> None:
            self.shell(f"printf %s {shlex.quote(content)} >{path} && systemctl reload {unit_name('gateway')}")

        put(text.replace(old, new))
        try:
            yield
        finally:
            put(text)

    @contextlib.contextmanager
    def stores(self) -> Iterator["Stores"]:
        """Reach the engines themselves, through SSH, as the operator: tens of thousands of items are asked for."""
        with self.identity() as folder, contextlib.ExitStack() as stack:
            trust = self.target.trust()
            trust.load_cert_chain(Path(folder, "tls.crt"), Path(folder, "tls.key"))
            ports = {engine: self.endpoints[engine]["http"]["port"] for engine in ENGINES}
            sockets = stack.enter_context(forwarded(self.host, ports))
            yield Stores({engine: stack.enter_context(through(socket, trust)) for engine, socket in sockets.items()})

    @contextlib.contextmanager
    def neighbour(self) -> Iterator[str]:
        """Give this machine a second address that the host can answer, for a client that is somebody else's."""
        address = ["192.0.2.77/32", "dev", self.host.veth]  # of a network that is nobody's (RFC 5737)
        subprocess.run(["ip", "addr", "add", *address], check=True)
        try:
            yield "192.0.2.77"
        finally:
            subprocess.run(["ip", "addr", "del", *address], check=True)

    @contextlib.contextmanager
    def noise(self, source: str, connections: int) -> Iterator["Noise"]:
        """Send log records from an address as fast as they are taken, until the block ends."""
        noise = Noise()
        with ingest_client(self.target, source=source) as client:
            client.timeout = httpx.Timeout(20)
            threads = [threading.Thread(target=noise.keep_sending, args=(client,)) for _ in range(connections)]
            for thread in threads:
                thread.start()
            try:
                yield noise
            finally:
                noise.stop.set()
                for thread in threads:
                    thread.join()

    @contextlib.contextmanager
    def without_limits_of_clients(self) -> Iterator[None]:
        """Let clients send as much as they can for a while."""
        self.shell("nft flush chain inet watchpost client")
        try:
            yield
        finally:
            self.shell("systemctl reload watchpost-firewall")

    def connections_of(self, client: str) -> int:
        """Return how many connections a client has to the OTLP/HTTP port."""
        port = self.endpoints["otel_collector"]["ingest_http"]["port"]
        return len(self.shell(f"ss --no-header --tcp state established sport = :{port} dst {client}").splitlines())

    def held_back(self, client: str) -> int:
        """Return the bytes that the firewall has dropped of a client within the last hour."""
        listing = json.loads(self.shell("nft --json list set inet watchpost held_back4"))
        (held_back,) = [item["set"] for item in listing["nftables"] if "set" in item]
        found = [each["elem"] for each in held_back.get("elem", ())]
        return sum(each["counter"]["bytes"] for each in found if each["val"] == client)

    def memory_mib(self, component: str) -> tuple[int, int]:
        """Return a component's resident memory now, and its peak since it started, in MiB."""
        status = self.shell(f"cat /proc/$(systemctl show --property=MainPID --value {unit_name(component)})/status")
        now, peak = (int(re.findall(rf"^{name}:\s+(\d+)", status, re.MULTILINE)[0]) for name in ("VmRSS", "VmHWM"))
        return now // 1024, peak // 1024

    @contextlib.contextmanager
    def small_volume(self, *components: str, mib: int) -> Iterator["Volume"]:
        """Have the state of components lie on a small file system, one for all of them, for a while."""
        units = " ".join(unit_name(one) for one in components)
        volume, image = Volume(self, "/run/drill-volume"), "/var/tmp/drill-volume.img"
        states = {f"/var/lib/watchpost/{one}": f"{volume.path}/{one}" for one in components}
        make = f"truncate -s {mib}M {image}; mkfs.ext4 -q -m 0 {image}"  # sparse: what is only claimed takes no room
        self.shell(f"set -e; {LOOP_DEVICES}; command -v mkfs.ext4 || apt-get install -qq e2fsprogs; {make}")
        try:
            mount = f"mkdir -p {volume.path}; mount -o loop {image} {volume.path}"
            binds = "; ".join(
                f"mkdir {place}; chown --reference={state} {place}; chmod --reference={state} {place}; "
                f"mount --bind {place} {state}"
                for state, place in states.items()
            )
            self.shell(f"set -e; systemctl stop {units}; {mount}; {binds}; systemctl start {units}")
            self.wait_until_ready(*components)
            yield volume
        finally:
            self.shell(f"systemctl stop {units}; umount {' '.join(states)} {volume.path}; rm -f {image}", check=False)
            self.shell(f"systemctl start {units}")
            self.wait_until_ready(*components)


@dataclass
class Stores:
    """The engines, asked as `watchpost.load_read` asks Grafana."""

    clients: dict[str, httpx.Client]

    def trace(self, trace_id: str) -> list[Span]:
        """Return the spans that Tempo holds of a trace."""
        answer = self.clients["tempo"].get(f"/api/traces/{trace_id}", headers={"Accept": "application/json"})
        return [] if answer.status_code == 404 else list(spans_of(answer.raise_for_status().json()))

    def proxied(self, uid: str, path: str, params: dict[str, object]) -> dict[str, object]:
        """Ask an engine in its own words."""
        return self.clients[uid].get(f"/{path}", params=params).raise_for_status().json()


def long_lines() -> bytes:
    """Return a request with 100 log records of 8 KiB each, of one service."""
    request = ExportLogsServiceRequest()
    resource = request.resource_logs.add()
    resource.resource.attributes.append(KeyValue(key="service.name", value=AnyValue(string_value="drill-noisy")))
    records = resource.scope_logs.add().log_records
    for number in range(100):
        words = random.Random(number).choices(
            ["task", "worker", "queue", "ready", "slow", "again", "order", "page"], k=1500
        )
        records.add(body=AnyValue(string_value=" ".join(words)[:8192]))
    return request.SerializeToString()


@dataclass
class Noise:
    """A client without manners: it sends all it can, and asks for nothing back."""

    body: bytes = field(default_factory=long_lines)
    taken: int = 0  # bytes of bodies whose request was acknowledged
    answers: dict[str, int] = field(default_factory=dict)
    stop: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def keep_sending(self, client: httpx.Client) -> None:
        """Send the same records again and again."""
        while not self.stop.is_set():
            try:
                status = client.post("/v1/logs", content=self.body, headers={"Content-Type": "application/x-protobuf"})
                answer = str(status.status_code)
            except httpx.TransportError as error:
                answer = type(error).__name__
            with self.lock:
                self.answers[answer] = self.answers.get(answer, 0) + 1
                self.taken += len(self.body) if answer == "200" else 0


def exporters(appliance: Appliance, settings: dict[str, object]) -> dict[str, object]:
    """Lay settings over every exporter that has a queue on disk."""
    names = appliance.shell("grep -oE '^  otlp_http/[a-z_]+' /etc/watchpost/otel_collector/current/otelcol.yml").split()
    assert names, "the Collector's configuration has no exporter otlp_http/…"
    return {"exporters": dict.fromkeys(names, settings)}


@dataclass
class Volume:
    """A small file system that can be filled."""

    appliance: Appliance
    path: str

    def fill(self, mib_a_second: int) -> None:
        """Leave no byte free, and take so long for it as a disk does that is written to at this rate."""
        free, filler = self.free_kib() // 1024 - 1, f"{self.path}/filler"
        step = min(free, mib_a_second // 10)
        steps = free // step
        self.appliance.shell(
            f"for n in $(seq {steps}); do fallocate -l {step}M {filler}$n; sleep 0.1; done; "
            # What is left: the large blocks first, then the small ones.
            f"dd if=/dev/zero of={filler}-64k bs=64k; dd if=/dev/zero of={filler}-512 bs=512",
            check=False,
        )

    def free(self) -> None:
        """Give the space back."""
        self.appliance.shell(f"rm -f {self.path}/filler*")

    def free_kib(self) -> int:
        """Tell how much is free."""
        return int(self.appliance.shell(f"df --output=avail -k {self.path} | tail -1"))


def _note(function: Callable[[], None], failed: list[BaseException]) -> None:
    try:
        function()
    except Exception as error:
        failed.append(error)


@dataclass
class Drill:
    """One drill: the appliance, its random moments, and its outcome."""

    appliance: Appliance
    outcome: Outcome
    chance: random.Random

    def pause(self, shortest: float, longest: float) -> None:
        """Let the load run until a random moment."""
        time.sleep(self.chance.uniform(shortest, longest))

    def kill(self, running: Running, *components: str) -> None:
        """Kill components, note when, and how long each took to be ready again."""
        broken, ready = self.appliance.kill(*components)
        running.breaks.append(broken)
        self.outcome.ready.extend(ready.values())
        say(f"killed {', '.join(components)}; ready again after {max(ready.values()):.1f} s")

    def settle(self, running: Running, timeout: float = 60) -> None:
        """Read everything back and enter it into the outcome."""
        self.appliance.read_back(running, timeout)
        for signal, count in running.counts.items():
            self.outcome.acknowledged += count.acknowledged
            self.outcome.refused += count.refused
            self.outcome.lost += count.lost
            if count.lost:
                self.outcome.window = max(self.outcome.window, running.window(signal))
            for remark in remarks(count):
                self.outcome.remarks.append(f"{signal}: {remark}")
                say(self.outcome.remarks[-1])
        say(f"{self.outcome.acknowledged} acknowledged, {self.outcome.lost} of them lost")
        assert self.outcome.acknowledged > 0, "nothing was acknowledged, so nothing is proven"

    def assert_nothing_lost(self, running: Running, timeout: float = 60) -> None:
        """Every acknowledged item is found, and whatever was broken was ready again in time."""
        self.settle(running, timeout)
        assert not self.outcome.lost, self.outcome.remarks
        self.assert_ready_in_time()

    def assert_ready_in_time(self) -> None:
        """Whatever was broken was ready again in time."""
        late = [seconds for seconds in self.outcome.ready if seconds > READY_SECONDS]
        assert not late, f"seconds until ready again: {late}"
