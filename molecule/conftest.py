"""What the scenarios' tests share: the registry of endpoints and ways to ask the host.

A scenario's tests get `host` from testinfra, and from here the fixtures `endpoints`, `components`, `ask`, `send`,
`exposure`, `listening`, `journal`, `unit`, `site`, `converge` and
`assert_refused`. A test that takes `component`, or `component` and `endpoint`, runs once
for each that the scenario's host has.
"""

import functools
import json
import os
import re
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from watchpost.project import PROJECT, ansible

ENDPOINTS = yaml.safe_load((PROJECT / "group_vars/all/endpoints.yml").read_text())["watchpost_endpoints"]
PKI = "/etc/watchpost/pki"


def scenario_components(name=None):
    """The components that the scenario's hosts, or the one of a name, run: those of the registry among their groups."""
    molecule_file = os.environ.get("MOLECULE_FILE")
    platforms = yaml.safe_load(Path(molecule_file).read_text())["platforms"] if molecule_file else []
    groups = {
        group for platform in platforms if name in (None, platform["name"]) for group in platform.get("groups", ())
    }
    return [component for component in ENDPOINTS if component in groups]


def unit_name(component):
    return f"watchpost-{component.replace('_', '-')}.service"


def pytest_generate_tests(metafunc):
    """Run a test for each component, or for each endpoint of each, as its parameters ask."""
    components = scenario_components()
    if "endpoint" in metafunc.fixturenames:
        wanted = getattr(metafunc.function, "auth", None)
        pairs = [
            (component, name)
            for component in components
            for name, endpoint in ENDPOINTS[component].items()
            if wanted in (None, endpoint["auth"])
        ]
        metafunc.parametrize(("component", "endpoint"), pairs, ids=["-".join(pair) for pair in pairs])
    elif "component" in metafunc.fixturenames:
        metafunc.parametrize("component", components)


def pytest_collection_modifyitems(items):
    """Where a scenario has several hosts, ask each only for what it runs itself."""

    def meant(item):
        parameters = getattr(item, "callspec", None) and item.callspec.params
        if not parameters or "component" not in parameters or "_testinfra_host" not in parameters:
            return True
        return parameters["component"] in scenario_components(parameters["_testinfra_host"].backend.host)

    items[:] = [item for item in items if meant(item)]


def only_with(auth):
    """Decorator: run a test of endpoints only for those whose callers prove themselves in this way."""

    def mark(function):
        function.auth = auth
        return function

    return mark


def wait_until(look, seconds):
    """Look until something true is found, and return it; fail when it is not there in time."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, f"still not so after {seconds} s"
        time.sleep(0.5)  # between two looks
    return found


def replace_on_disk(host, pattern):
    """Put a copy in the place of a file, as a package's upgrade does: what runs has the old one still."""
    host.check_output(f"for file in {pattern}; do cp -a $file $file.new && mv $file.new $file || exit; done")


def left_of_watchpost(host):
    """All on a host that has Watchpost's name, or belongs to nobody, but for its data and what systemd keeps."""
    kept = " ".join(f"-not -path '{path}'" for path in ("/var/lib/watchpost", "/var/lib/watchpost/*", "/var/log/*"))
    apart = f"{kept} -not -path '/run/systemd/*' -not -name watchpost-testhost"
    named = host.check_output(f"find / /run -xdev -name '*watchpost*' {apart}")
    others = "getent passwd | grep watchpost; getent group | grep watchpost; nft list tables | grep watchpost"
    units = "systemctl list-units --all --plain --no-legend 'watchpost*'"
    orphans = "find / -xdev -nouser -o -xdev -nogroup"
    ports = "ss --listening --tcp --numeric --no-header | grep -v ':22 '"
    return f"{named}\n{host.check_output(f'{{ {others}; {units}; {orphans}; {ports}; }} || true')}".strip()


@dataclass(frozen=True)
class Answer:
    """What came back: an HTTP status with its body, or raw bytes, or an error."""

    status: int | None = None
    headers: dict = field(default_factory=dict)  # names in lower case
    body: str = ""
    error: str = ""

    @property
    def json(self):
        return json.loads(self.body)


# Runs on the host, which has Python and nothing else that speaks TLS. Its one argument is the question, as JSON.
ASK = """
import http.client, json, socket, ssl, sys
HEADERS = 1  # a type of HTTP/2's frames
q = json.loads(sys.argv[1])
try:
    context = None
    if q["tls"]:
        context = ssl.create_default_context(cafile=q["ca"])
        if q["certificate"]:
            context.load_cert_chain(q["certificate"], q["key"])
        if q["alpn"]:
            context.set_alpn_protocols([q["alpn"]])
    if q["first_bytes"] is None:
        kind = http.client.HTTPSConnection if context else http.client.HTTPConnection
        connection = kind(q["address"], q["port"], timeout=q["timeout"], **({"context": context} if context else {}))
        connection.request(q["method"], q["path"], q["body"], q["headers"])
        answer = connection.getresponse()
        headers = {name.lower(): ", ".join(answer.headers.get_all(name)) for name in answer.headers}
        print(json.dumps({"status": answer.status, "headers": headers, "body": answer.read().decode(errors="replace")}))
    else:
        connection = socket.create_connection((q["address"], q["port"]), q["timeout"])
        if context:
            connection = context.wrap_socket(connection, server_hostname=q["address"])
        connection.sendall(q["first_bytes"].encode("latin-1"))
        said = connection.recv(4096)
        if context and q["alpn"]:  # of HTTP/2 the headers of the answer, which other frames may precede
            while len(said) >= 9 and said[3] != HEADERS:
                size = 9 + int.from_bytes(said[:3], "big")
                while len(said) < size + 9 and (more := connection.recv(4096)):
                    said += more
                said = said[size:]
            said = said[9:]
        print(json.dumps({"body": said.decode("latin-1")}))
except (OSError, http.client.HTTPException) as error:
    print(json.dumps({"error": f"{type(error).__name__}: {error}"}))
"""

# What a client of each kind says first: an HTTP request; in HTTP/2 a preface and an empty SETTINGS frame before it.
FIRST_BYTES = {
    "https": "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
    "grpcs": "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"
    # A HEADERS frame that ends its stream, and whose headers stand in HPACK's static table but for the host's name.
    "\x00\x00\x0e\x01\x05\x00\x00\x00\x01\x82\x84\x87\x41\x09localhost",
}


def _question(component, endpoint, identity, tls, **more):
    where = ENDPOINTS[component][endpoint]
    if component == "agent" and identity == "operator":
        identity = "agent"  # whose host has no other
    folder = f"{PKI}/{identity}" if identity and not identity.startswith("/") else identity
    return {
        "address": "127.0.0.1",
        "port": where["port"],
        "tls": tls,
        "ca": f"{PKI}/ca.crt",
        "certificate": f"{folder}/tls.crt" if folder else None,
        "key": f"{folder}/tls.key" if folder else None,
        "alpn": "h2" if where["scheme"] == "grpcs" else None,
        "first_bytes": None,
        "timeout": 10,
        **more,
    }


@pytest.fixture
def endpoints():
    """The registry of endpoints, as group_vars has it."""
    return ENDPOINTS


@pytest.fixture
def components(host):
    """The components that the host runs."""
    return scenario_components(host.backend.host)


def asker(host):
    """Return a function that sends an HTTP request to an endpoint, on a host itself.

    `identity` is a component of the PKI, a directory with tls.crt and tls.key, or None for no certificate;
    `request` may hold `method`, `body` and `headers`.
    """

    def ask(component, endpoint, path="/", *, identity="operator", token=None, tls=True, **request):
        request = {"method": "GET", "body": None, "headers": {}} | request
        if token:
            request["headers"] = {**request["headers"], "Authorization": f"Bearer {token}"}
        question = _question(component, endpoint, identity, tls, path=path, **request)
        return Answer(**json.loads(host.check_output("python3 -c %s %s", ASK, json.dumps(question))))

    return ask


@pytest.fixture
def ask(host):
    """Send an HTTP request to an endpoint, on the host itself."""
    return asker(host)


@pytest.fixture
def send(host):
    """Say to an endpoint what its clients say first; the answer's body is the first bytes that came back."""

    def send(component, endpoint, *, identity="operator", tls=True):
        first = FIRST_BYTES[ENDPOINTS[component][endpoint]["scheme"]]
        question = _question(component, endpoint, identity, tls, first_bytes=first, timeout=5)
        return Answer(**json.loads(host.check_output("python3 -c %s %s", ASK, json.dumps(question))))

    return send


@dataclass(frozen=True)
class Run:
    """What a run of site.yml did."""

    code: int
    output: str

    @property
    def changed(self):
        return bool(re.search(r"\bchanged=[1-9]", self.output))  # on one host or another


def run_playbook(playbook, *options, **variables):
    """Run a playbook against the scenario's host with some variables changed, as a user would."""
    # The whole directory: beside the file that Molecule writes lies the one that tells how to reach the test host.
    inventory = str(Path(os.environ["MOLECULE_INVENTORY_FILE"]).parent)
    command = ansible("ansible-playbook", "-i", inventory, str(playbook), "-e", json.dumps(variables), *options)
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    return Run(done.returncode, done.stdout + done.stderr)


def play(components, *options, **variables):
    """Run site.yml for some components only (or other tags, separated by commas), which takes half the time."""
    return run_playbook("site.yml", f"--tags={components}", *options, **variables)


@pytest.fixture
def site():
    """Run site.yml against the scenario's host with some variables changed."""
    return functools.partial(run_playbook, "site.yml")


@pytest.fixture
def converge():
    """Run the scenario's own converge.yml with some variables changed."""
    return functools.partial(run_playbook, Path(os.environ["MOLECULE_SCENARIO_DIRECTORY"], "converge.yml"))


@pytest.fixture
def assert_refused(host):
    """Assert that a run with some variables changed fails at the program's own check, and leaves alone what runs.

    The run's output must hold the words: what the program has against its configuration.
    """

    def running(component):
        pid = host.check_output("systemctl show --property=MainPID --value %s", unit_name(component))
        return pid, host.check_output("readlink /etc/watchpost/%s/current", component)

    def assert_refused(component, *words, **variables):
        before = running(component)
        run = play(component, **variables)
        assert run.code != 0, run.output
        for word in (f"{component} does not accept its new configuration", *words):
            assert word in run.output, run.output
        assert running(component) == before

    return assert_refused


@pytest.fixture
def unit(host):
    """The systemd unit of a component, by its key in the registry."""
    return lambda component: host.service(unit_name(component))


@pytest.fixture
def exposure(host):
    """The figure that `systemd-analyze security` gives a unit: 0 is the tightest sandbox, 10 is none."""

    def exposure(component):
        report = host.check_output("systemd-analyze security --no-pager %s", unit_name(component))
        return float(re.search(r"exposure level for \S+: ([\d.]+)", report).group(1))

    return exposure


@pytest.fixture
def listening(host):
    """The TCP ports on which the host listens: {port: {addresses}}."""
    found = {}
    for line in host.check_output("ss --listening --tcp --numeric --no-header").splitlines():
        address, port = line.split()[3].rsplit(":", 1)
        found.setdefault(int(port), set()).add(address.strip("[]").partition("%")[0])
    return found


@pytest.fixture
def journal(host):
    """What a component has written to the journal since the host booted."""
    return lambda component: host.check_output("journalctl --boot --output=cat --unit=%s", unit_name(component))
