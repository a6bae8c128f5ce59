"""Test hosts: Debian with systemd as PID 1, SSH and a network of its own, without a hypervisor.

A host is a systemd-nspawn container whose root is an overlay over a cached Debian tree. It lives in a network
namespace and a control group that belong to it alone, so that `down` can remove exactly what `up` made.

Everything about a host follows from its *key*, a hash of the checkout's path and the host's name: two checkouts on one
machine never share a name. Each step of `up` makes what is missing and leaves the rest, and `down` removes whatever it
finds, so both may be interrupted at any point and run again.
"""

import contextlib
import fcntl
import hashlib
import ipaddress
import json
import os
import re
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from watchpost import packages, secrets
from watchpost.artifacts.store import cache_dir
from watchpost.project import PROJECT

CACHE = cache_dir()
HOSTS = CACHE / "testhosts"
#: What all checkouts of this machine share: the lock on its network, and SSH's sockets (whose paths must be short).
RUNTIME = Path("/run/watchpost-testhost")
#: The addresses that test hosts are given, a /30 each.
POOL = ipaddress.IPv4Network("10.213.0.0/16")
IP_FORWARD = Path("/proc/sys/net/ipv4/ip_forward")
#: The machine's name servers; and, where the first is a resolver on loopback (systemd-resolved), those that it asks.
RESOLV_CONF = (Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf"))

SUITES = ("trixie", "bookworm")
#: What a freshly installed server has, and no more: whatever else a role needs, it must install.
BASE_PACKAGES = ["systemd", "systemd-sysv", "dbus", "python3", "openssh-server", "iproute2", "ca-certificates", "sudo"]
BOOT_DEADLINE = 90.0  # seconds; about 3 on an idle machine


class TestHostError(Exception):
    """A test host could not be made, reached or removed; the message says what to do."""

    __test__ = False  # not a test class, whatever pytest thinks of its name


@dataclass(frozen=True)
class Host:
    """One test host of this checkout, by name; the paths and names of all that belongs to it."""

    name: str

    def __post_init__(self) -> None:
        """Refuse a name that cannot be a host name."""
        if not re.fullmatch(r"[a-z][a-z0-9-]{0,39}", self.name):
            raise TestHostError(f"{self.name!r} is no host name: use a-z, 0-9 and '-', 40 characters at most")

    @property
    def key(self) -> str:
        """Eight hex digits that no other host of this machine has."""
        return hashlib.sha256(f"{PROJECT}\0{self.name}".encode()).hexdigest()[:8]

    @property
    def id(self) -> str:
        """The name under which the machine knows the host."""
        return f"{self.name}-{self.key}"

    @property
    def state(self) -> Path:
        """Directory of all the host's files."""
        return HOSTS / self.id

    @property
    def root(self) -> Path:
        """The host's root directory, an overlay mount."""
        return self.state / "root"

    @property
    def inventory(self) -> Path:
        """Ansible's inventory file for the host."""
        return self.state / "inventory" / "hosts.yml"

    @property
    def deployment(self) -> str:
        """The name under which the controller keeps the host's secrets: this host's alone."""
        return f"testhost-{self.id}"

    @property
    def sockets(self) -> Path:
        """Directory of SSH's control sockets: a host made anew must not meet its predecessor's connections."""
        return RUNTIME / self.key

    @property
    def netns(self) -> str:
        """The network namespace."""
        return f"watchpost-{self.id}"

    @property
    def veth(self) -> str:
        """The controller's end of the cable (at most 15 characters)."""
        return f"wp{self.key}"

    @property
    def nft_table(self) -> str:
        """The nftables table that lets the host out."""
        return f"watchpost_{self.key}"

    @property
    def cgroup(self) -> Path:
        """The control group that holds every process of the host, and none other."""
        return cgroup_mount() / f"watchpost-{self.id}"

    @property
    def facts(self) -> dict[str, Any]:
        """What `up` decided about the host; empty when there is none."""
        try:
            return dict(json.loads((self.state / "host.json").read_text()))
        except FileNotFoundError:
            return {}

    @property
    def ssh_options(self) -> list[str]:
        """Options for ssh(1): the host's own key, and no host key but the one that we gave it."""
        return [
            *("-o", f"IdentityFile={self.state}/id_ed25519", "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes"),
            *("-o", f"UserKnownHostsFile={self.state}/known_hosts", "-o", "StrictHostKeyChecking=yes"),
        ]

    def ssh(self, *command: str) -> list[str]:
        """Argv that runs a shell command on the host."""
        return ["ssh", *self.ssh_options, "-o", "ConnectTimeout=5", f"root@{self.facts['address']}", *command]


# --- small helpers ---


def say(text: str) -> None:
    """Progress goes to stderr: stdout carries the answer."""
    print(text, file=sys.stderr, flush=True)


def run(*command: str | Path, text: str | None = None) -> str:
    """Run a command and return its stdout; its stderr is in the error when it fails."""
    done = subprocess.run([str(part) for part in command], input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise TestHostError(f"{' '.join(map(str, command))}\nfailed ({done.returncode}): {done.stderr.strip()}")
    return done.stdout


def succeeds(*command: str | Path) -> bool:
    """Tell whether a command exits 0."""
    return subprocess.run([str(part) for part in command], capture_output=True, check=False).returncode == 0


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock that other processes respect; the kernel frees it if we die. Who holds it may unlink its file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with path.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                ours = os.path.samestat(os.fstat(file.fileno()), path.stat())
            except FileNotFoundError:
                ours = False
            if ours:
                yield
                return
            # Whoever held it before us took the file away: others will lock a new one, so must we.


def cgroup_mount() -> Path:
    """Where this machine keeps its version-2 control groups."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, where, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(where)
    raise TestHostError("no cgroup2 file system is mounted: a test host's systemd needs one (kernel 4.15 or newer)")


def mounts_below(directory: Path) -> list[Path]:
    """Mount points at or below a directory, the innermost first."""
    points = (Path(line.split()[4]) for line in Path("/proc/self/mountinfo").read_text().splitlines())
    return sorted((point for point in points if point.is_relative_to(directory)), reverse=True)


def own_python() -> Path:
    """The Python that runs this, as a person types it: from the checkout's directory when it lies in there."""
    python = Path(sys.executable)
    return python.relative_to(PROJECT) if python.is_relative_to(PROJECT) else python


# --- the base: one Debian tree that all hosts share ---


def extra_certificates() -> dict[str, bytes]:
    """CAs that the administrator of this machine added: behind its proxy, the host needs them too."""
    return {path.name: path.read_bytes() for path in sorted(Path("/usr/local/share/ca-certificates").glob("*.crt"))}


def base_directory(suite: str, more: Sequence[str] = ()) -> Path:
    """Where the base of a suite, with more packages, lies; its name changes with whatever it is made of."""
    recipe = repr(([*BASE_PACKAGES, *more], extra_certificates(), pip_configuration(), _finish_base.__code__.co_code))
    return CACHE / "base" / f"{suite}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"


def pip_configuration() -> str:
    """This machine's pip configuration, if it has one: it says how PyPI is reached from here."""
    for path in (Path("~/.config/pip/pip.conf").expanduser(), Path("/etc/pip.conf")):
        if path.exists():
            return path.read_text()
    return ""


def ensure_base(suite: str, more: Sequence[str] = ()) -> Path:
    """Return the cached Debian tree of a suite, with more packages; make it first if need be (about 40 s)."""
    base = base_directory(suite, more)
    with locked(base.with_suffix(".lock")):
        if not base.exists():
            say(f"Making the Debian {suite} base of test hosts (once; about 40 s) …")
            part = base.with_suffix(".part")
            shutil.rmtree(part, ignore_errors=True)
            packages.ensure("test hosts")
            run("mmdebstrap", "--variant=minbase", f"--include={','.join([*BASE_PACKAGES, *more])}", suite, part)
            _finish_base(part)
            part.rename(base)
    return base


def _finish_base(base: Path) -> None:
    """Turn a fresh Debian tree into the base of many hosts."""
    for key in (base / "etc/ssh").glob("ssh_host_*"):
        key.unlink()  # each host gets its own
    for name, certificate in extra_certificates().items():
        (base / "usr/local/share/ca-certificates" / name).write_bytes(certificate)
    run("chroot", base, "update-ca-certificates")
    (base / "etc/pip.conf").write_text(pip_configuration())
    # A host lives for minutes: what dpkg has written need not survive a power cut.
    (base / "etc/dpkg/dpkg.cfg.d/watchpost-testhost").write_text("force-unsafe-io\n")
    # They would start downloads in the midst of a test.
    for timer in ("apt-daily.timer", "apt-daily-upgrade.timer"):
        (base / "etc/systemd/system" / timer).symlink_to("/dev/null")


# --- the pieces of a host ---


def choose_subnet(key: str, taken: Iterable[ipaddress.IPv4Network]) -> ipaddress.IPv4Network:
    """Pick a /30 of POOL that overlaps nothing in use: always the same for a key, unless that one is taken."""
    used = [network for network in taken if network.prefixlen and network.overlaps(POOL)]
    count = 2 ** (30 - POOL.prefixlen)
    start = int(key, 16) % count
    for offset in range(count):
        first = int(POOL.network_address) + (start + offset) % count * 4
        subnet = ipaddress.IPv4Network((first, 30))
        if not any(subnet.overlaps(network) for network in used):
            return subnet
    raise TestHostError(f"no free /30 is left in {POOL}: `testhost list` shows the hosts of this machine")


def networks_in_use() -> list[ipaddress.IPv4Network]:
    """All networks that this machine has a route to, its own addresses among them."""
    routes = json.loads(run("ip", "-4", "-json", "route", "show", "table", "all"))
    destinations = (route["dst"] for route in routes if route["dst"] != "default")
    return [ipaddress.IPv4Network(destination, strict=False) for destination in destinations]


def resolv_conf() -> str:
    """This machine's name servers, as the host can reach them: a resolver on loopback is replaced by what it asks."""
    own, upstream = RESOLV_CONF
    text = own.read_text()
    if re.search(r"^nameserver\s+(127\.|::1)", text, re.MULTILINE):
        if not upstream.exists():
            raise TestHostError(f"{own} names a resolver on loopback, which a test host cannot reach")
        text = upstream.read_text()
    return text


def component_groups() -> list[str]:
    """The groups of an appliance that runs everything, as inventory/one-vm has them."""
    inventory = yaml.safe_load((PROJECT / "inventory/one-vm/hosts.yml").read_text())
    return [group for group in inventory["all"]["children"] if group not in ("watchpost", "agent")]


def inventory_text(host: Host, address: str, groups: Sequence[str]) -> str:
    """Ansible's inventory of one host: an agent's, or one that is in `watchpost` and in the given groups."""
    variables = {
        "ansible_host": address,
        "ansible_user": "root",
        "ansible_ssh_private_key_file": f"{host.state}/id_ed25519",
        "ansible_ssh_common_args": " ".join(host.ssh_options),
        "ansible_control_path_dir": str(host.sockets),
        "watchpost_deployment": host.deployment,
    }
    first = "agent" if "agent" in groups else "watchpost"
    children: dict[str, Any] = {
        "watchpost": {"hosts": {}},
        "agent": {"hosts": {}},
        first: {"hosts": {host.name: variables}},
    }
    children |= {group: {"hosts": {host.name: None}} for group in groups if group not in children}
    tree = {"all": {"children": children}}
    return f"---\n# Test host {host.name}, made by `watchpost testhost up`.\n{yaml.safe_dump(tree, sort_keys=False)}"


def _make_network(host: Host) -> str:
    """Give the host a network namespace, a cable to it and a way out; return its address."""
    with locked(RUNTIME / "lock"):
        if not Path("/run/netns", host.netns).exists():
            run("ip", "netns", "add", host.netns)
        if not succeeds("ip", "link", "show", host.veth):
            run("ip", "link", "add", host.veth, "type", "veth", "peer", "name", "eth0", "netns", host.netns)
        links = json.loads(run("ip", "-4", "-json", "addr", "show", "dev", host.veth))
        addresses = [each["local"] for link in links for each in link.get("addr_info", ())]
        if addresses:
            subnet = ipaddress.IPv4Interface(f"{addresses[0]}/30").network
        else:
            subnet = choose_subnet(host.key, networks_in_use())
        gateway, address = (str(each) for each in subnet.hosts())
        run("ip", "addr", "replace", f"{gateway}/30", "dev", host.veth)
        run("ip", "link", "set", host.veth, "up")
        inside = ("ip", "-n", host.netns)
        run(*inside, "link", "set", "lo", "up")
        run(*inside, "addr", "replace", f"{address}/30", "dev", "eth0")
        run(*inside, "link", "set", "eth0", "up")
        run(*inside, "route", "replace", "default", "via", gateway)
        # Test hosts see each other's real addresses; only what leaves the machine is masqueraded.
        rule = f"ip saddr {subnet} ip daddr != {POOL} masquerade"
        run(
            "nft",
            "-f",
            "-",
            text=f"""
            table ip {host.nft_table}
            delete table ip {host.nft_table}
            table ip {host.nft_table} {{
                chain postrouting {{ type nat hook postrouting priority srcnat; {rule}; }}
            }}""",
        )
        before = RUNTIME / "ip_forward.before"
        if not before.exists():
            before.write_text(IP_FORWARD.read_text())
        IP_FORWARD.write_text("1\n")
    return address


def _make_keys(host: Host, address: str) -> None:
    """Make the key that opens the host and the key that proves it, once."""
    for name in ("id_ed25519", "host_ed25519"):
        if not (host.state / f"{name}.pub").exists():
            (host.state / name).unlink(missing_ok=True)
            run(
                "ssh-keygen",
                "-q",
                "-t",
                "ed25519",
                "-N",
                "",
                "-C",
                f"watchpost-testhost-{host.name}",
                "-f",
                host.state / name,
            )
    kind, key, _ = (host.state / "host_ed25519.pub").read_text().split()
    (host.state / "known_hosts").write_text(f"{address} {kind} {key}\n")


def apt_archives(suite: str) -> Path:
    """Debian packages that earlier hosts fetched, so that each is fetched once."""
    return CACHE / "apt" / suite


def _link_packages(source: Path, target: Path) -> None:
    """Hard-link the Debian packages that `target` lacks: apt replaces such files, it never writes into them."""
    target.mkdir(parents=True, exist_ok=True)
    for package in source.glob("*.deb"):
        with contextlib.suppress(FileExistsError):
            os.link(package, target / package.name)


def _make_root(host: Host, base: Path, suite: str, address: str) -> None:
    """Mount the host's root over the base and write what makes it this host."""
    upper, work = host.state / "upper", host.state / "work"
    if not host.root.is_mount():
        for directory in (upper, work, host.root):
            directory.mkdir(exist_ok=True)
        _link_packages(apt_archives(suite), upper / "var/cache/apt/archives")
        run("mount", "-t", "overlay", f"watchpost-{host.id}", "-o",
            f"lowerdir={base},upperdir={upper},workdir={work}", host.root)  # fmt: skip
    etc = host.root / "etc"
    (etc / "hostname").write_text(f"{host.name}\n")
    (etc / "hosts").write_text(f"127.0.0.1 localhost\n::1 localhost\n{address} {host.name}\n")
    (etc / "resolv.conf").write_text(resolv_conf())
    if not (etc / "machine-id").exists() or len((etc / "machine-id").read_text()) != 33:
        (etc / "machine-id").write_text(f"{uuid.uuid4().hex}\n")
    for suffix, mode in (("", 0o600), (".pub", 0o644)):
        target = etc / f"ssh/ssh_host_ed25519_key{suffix}"
        shutil.copyfile(host.state / f"host_ed25519{suffix}", target)
        target.chmod(mode)
    (host.root / "root/.ssh").mkdir(mode=0o700, exist_ok=True)
    shutil.copyfile(host.state / "id_ed25519.pub", host.root / "root/.ssh/authorized_keys")


def is_running(host: Host) -> bool:
    """Tell whether any process of the host lives."""
    return bool(_processes(host.cgroup))


def _groups(cgroup: Path) -> list[Path]:
    """Return a control group and all below it; one that vanishes while we look is passed over."""
    return [Path(directory) for directory, _, _ in os.walk(cgroup)]


def _processes(cgroup: Path) -> list[int]:
    """Process ids in a control group and in all groups below it."""
    found: list[int] = []
    for group in _groups(cgroup):
        with contextlib.suppress(OSError):
            found += map(int, (group / "cgroup.procs").read_text().split())
    return found


def _boot(host: Host) -> None:
    """Start the host's systemd, in the background and in its own control group."""
    loop, inside = host.cgroup / "loop", host.cgroup / "host"
    for group in (host.cgroup, loop, inside):
        group.mkdir(exist_ok=True)
    command = [
        "systemd-nspawn", "--quiet", f"--directory={host.root}", "--boot", "--register=no", "--keep-unit",
        f"--machine={host.id}", f"--hostname={host.name}", f"--network-namespace-path=/run/netns/{host.netns}",
        "--capability=CAP_NET_ADMIN",  # a host has a firewall of its own
        "--resolv-conf=off", "--timezone=off", "--link-journal=no", "--console=pipe",
    ]  # fmt: skip
    # Each shell enters its group before it does anything else: a crash loses sight of neither.
    # nspawn leaves with 133 when the host reboots.
    start = f'echo $$ >{inside}/cgroup.procs; exec "$@"'
    again = f"""echo $$ >{loop}/cgroup.procs; while sh -c '{start}' start "$@"; [ $? -eq 133 ]; do :; done"""
    with (host.state / "console.log").open("wb") as console:
        subprocess.Popen(
            ["sh", "-c", again, "loop", *command],
            env={
                **os.environ,
                "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1",
                "UNIFIED_CGROUP_HIERARCHY": "1",
                "SYSTEMD_NSPAWN_API_VFS_WRITABLE": "network",  # and network sysctls of its own
            },
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _wait_until_up(host: Host, other_than_boot: str = "") -> str:
    """Wait until systemd says `running` over SSH; return the id of this boot. Not satisfied by `other_than_boot`."""
    ask = "cat /proc/sys/kernel/random/boot_id; systemctl is-system-running --wait"
    deadline = time.monotonic() + BOOT_DEADLINE
    answer = ""
    while time.monotonic() < deadline:
        done = subprocess.run(host.ssh(ask), capture_output=True, text=True, check=False)
        answer = done.stdout + done.stderr
        boot, _, status = done.stdout.partition("\n")
        if status.strip() in ("running", "degraded") and boot != other_than_boot:
            if status.strip() == "running":
                return boot
            answer = subprocess.run(host.ssh("systemctl --failed"), capture_output=True, text=True, check=False).stdout
            break
        time.sleep(0.2)  # between two questions
    console = (host.state / "console.log").read_text(errors="replace").splitlines()
    raise TestHostError(
        f"test host {host.name} did not come up within {BOOT_DEADLINE:.0f} s. It last answered: {answer.strip()}\n"
        + "The end of its console:\n  "
        + "\n  ".join(console[-25:])
    )


# --- up, down and what lies between ---


def up(host: Host, suite: str = SUITES[0], groups: Sequence[str] = (), more: Sequence[str] = ()) -> Path:
    """Boot a test host, with more packages than a fresh server has, unless it runs; return its inventory's path."""
    if os.geteuid() != 0:
        raise TestHostError("a test host needs root: it mounts, boots and connects a machine")
    if suite not in SUITES:
        raise TestHostError(f"--suite {suite}: one of {', '.join(SUITES)}")
    known = [*component_groups(), "agent"]
    if unknown := set(groups) - set(known):
        raise TestHostError(f"--group {', '.join(sorted(unknown))}: the groups are {', '.join(known)}")
    packages.ensure("test hosts")
    with locked(HOSTS / f"{host.id}.lock"):
        made_of = host.facts.get("suite", suite)
        if made_of != suite:
            raise TestHostError(
                f"test host {host.name} is a Debian {made_of}: take it down first (testhost down {host.name})"
            )
        started = time.monotonic()
        base = Path(host.facts["base"]) if host.facts else ensure_base(suite, more)
        for directory in (host.state, host.sockets, host.inventory.parent):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        address = _make_network(host)
        facts = {"name": host.name, "checkout": str(PROJECT), "suite": suite, "base": str(base), "address": address}
        (host.state / "host.json").write_text(json.dumps(facts))
        _make_keys(host, address)
        host.inventory.write_text(inventory_text(host, address, groups or component_groups()))
        if not is_running(host):
            say(f"Booting test host {host.name} (Debian {suite}, {address}) …")
            _make_root(host, base, suite, address)
            _boot(host)
        _wait_until_up(host)
        say(f"Test host {host.name} is up at {address} ({time.monotonic() - started:.1f} s)")
    return host.inventory


def reboot(host: Host) -> None:
    """Reboot the host and wait until it is back."""
    if not is_running(host):
        raise TestHostError(f"test host {host.name} does not run: testhost up {host.name}")
    boot = _wait_until_up(host)
    subprocess.run(host.ssh("systemctl reboot"), capture_output=True, check=False)  # the connection may break first
    _wait_until_up(host, other_than_boot=boot)


def down(host: Host) -> None:
    """Remove everything that `up` made for this host, however far it came; nothing else."""
    lock = HOSTS / f"{host.id}.lock"
    with locked(lock):
        suite = host.facts.get("suite")
        if suite:
            _link_packages(host.state / "upper/var/cache/apt/archives", apt_archives(suite))
        _kill(host)
        for socket in host.sockets.glob("*"):
            succeeds("ssh", "-o", f"ControlPath={socket}", "-O", "exit", "gone")
        for mount in mounts_below(host.state):
            run("umount", mount)
        with locked(RUNTIME / "lock"):
            if succeeds("nft", "list", "table", "ip", host.nft_table):
                run("nft", "delete", "table", "ip", host.nft_table)
            if succeeds("ip", "link", "show", host.veth):
                run("ip", "link", "delete", host.veth)
            if Path("/run/netns", host.netns).exists():
                run("ip", "netns", "delete", host.netns)
            shutil.rmtree(host.sockets, ignore_errors=True)
            before = RUNTIME / "ip_forward.before"
            if before.exists() and not any(path.is_dir() for path in RUNTIME.iterdir()):
                IP_FORWARD.write_text(before.read_text())  # that was the machine's last test host
                before.unlink()
        for leftover in ("propagate", "unix-export"):
            shutil.rmtree(Path("/run/systemd/nspawn", leftover, host.id), ignore_errors=True)
        for directory in (host.state, secrets.state_dir(host.deployment)):
            if directory.exists():
                shutil.rmtree(directory)
        lock.unlink()  # while it is held: see locked()


def _kill(host: Host) -> None:
    """End every process in the host's control group and remove the group. No other process can be in it."""
    deadline = time.monotonic() + 60  # a second on an idle machine
    while is_running(host):
        if time.monotonic() > deadline:
            raise TestHostError(f"processes of test host {host.name} do not end: {_processes(host.cgroup)}")
        (host.cgroup / "cgroup.kill").write_text("1")
        time.sleep(0.05)  # the kernel takes a moment
    while groups := _groups(host.cgroup):
        for group in sorted(groups, reverse=True):
            with contextlib.suppress(OSError):  # the kernel is not done with the last process in it
                group.rmdir()
        if time.monotonic() > deadline:
            raise TestHostError(f"control groups of test host {host.name} do not go away: {host.cgroup}")


# --- the command line ---

app = typer.Typer(help="Real hosts with systemd to try Watchpost on, without a hypervisor.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="The host's name, unique in this checkout.")]


@contextlib.contextmanager
def _plain_errors() -> Iterator[None]:
    """Show an error as one message, not as a traceback."""
    try:
        yield
    except (TestHostError, packages.PackageError) as error:
        say(f"error: {error}")
        raise typer.Exit(1) from error


@app.command("up")
def up_command(
    name: Name,
    suite: Annotated[str, typer.Option(help=f"The Debian release: {' or '.join(SUITES)}.")] = SUITES[0],
    group: Annotated[list[str] | None, typer.Option(help="A component it runs; repeat. Default: all.")] = None,
    package: Annotated[list[str] | None, typer.Option(help="A Debian package it has from the start; repeat.")] = None,
) -> None:
    """Boot a test host and print its inventory's path."""
    with _plain_errors():
        print(up(Host(name), suite, group or (), package or ()))


@app.command("down")
def down_command(name: Name) -> None:
    """Remove a test host and all that was made for it."""
    with _plain_errors():
        down(Host(name))


@app.command("reboot")
def reboot_command(name: Name) -> None:
    """Reboot a test host and wait until it is back."""
    with _plain_errors():
        reboot(Host(name))


@app.command("ssh", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
def ssh_command(
    name: Name, command: Annotated[list[str] | None, typer.Argument(help="Default: a shell.")] = None
) -> None:
    """Run a command on a test host, or open a shell."""
    with _plain_errors():
        host = Host(name)
        if not is_running(host):
            raise TestHostError(f"test host {name} does not run: testhost up {name}")
    argv = host.ssh(*(command or ()))
    os.execvp(argv[0], argv)  # noqa: S606 - becoming ssh is the point


@app.command("inventory")
def inventory_command(name: Name) -> None:
    """Print the path of a test host's inventory."""
    print(Host(name).inventory)


@app.command("show")
def show_command(name: Name) -> None:
    """Show where the appliance on a test host is reached, and by whom."""
    host = Host(name)
    if not host.facts:
        say(f"error: there is no test host {name}: testhost up {name}")
        raise typer.Exit(1)
    url = f"https://{host.facts['address']}"
    program = f"{own_python()} -m watchpost"
    print(f"""
The application   {url}/
Grafana           {url}/grafana/   as admin; its password:
                    {program} secrets show grafana_admin_password --deployment {host.deployment}
CA to trust       {secrets.state_dir(host.deployment)}/ca.crt
A shell           {program} testhost ssh {name}
Inventory         {host.inventory}
""")


@app.command("list")
def list_command() -> None:
    """Show the test hosts of every checkout that uses this cache."""
    for file in sorted(HOSTS.glob("*/host.json")):
        facts = json.loads(file.read_text())
        running = bool(_processes(cgroup_mount() / f"watchpost-{file.parent.name}"))
        print(facts["name"], facts["address"], facts["suite"], "running" if running else "stopped", facts["checkout"])
