#!/usr/bin/python
"""Look at a host: all that preflight judges, in one go. Changes nothing, and runs on old Pythons too."""

from __future__ import annotations

import glob
import json
import os
import platform
import re
import subprocess
import time

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = """
module: watchpost_preflight
short_description: Refuse a wrong host or a wrong variable before anything is changed
description:
  - The action plugin of the same name judges; this part only looks at the host.
options:
  directories: {description: Where to measure free disk space., type: list, elements: path, required: true}
  ports: {description: Whose listeners to look for., type: list, elements: int, required: true}
  data: {description: The directory whose room for data to measure., type: path, required: true}
  config: {description: Where services are configured, and stands whose secrets are here., type: path, required: true}
"""


def main():  # noqa: ANN201
    """Read the arguments, look, report."""
    module = AnsibleModule(
        argument_spec={
            "directories": {"type": "list", "elements": "path", "required": True},
            "ports": {"type": "list", "elements": "int", "required": True},
            "data": {"type": "path", "required": True},
            "config": {"type": "path", "required": True},
        },
        supports_check_mode=True,
    )
    found = listeners()
    module.exit_json(
        changed=False,
        os_release=os_release(),
        architecture=platform.machine(),
        init=read("/proc/1/comm").strip(),
        python=platform.python_version(),
        user_id=os.geteuid(),
        memory_mb=int(re.search(r"MemTotal:\s+(\d+)", read("/proc/meminfo")).group(1)) // 1024,
        free_mb={directory: free_mb(directory) for directory in module.params["directories"]},
        data_mb=free_mb(module.params["data"]) + used_mb(module.params["data"]),
        mark=read(f"{module.params['config']}/deployment"),
        installed=bool(glob.glob(f"{module.params['config']}/*/good.json")),  # noqa: PTH207
        listeners=[each for each in found if each["port"] in module.params["ports"]],
        ssh_ports=ssh_ports(found),
        firewalls=firewalls(),
        clock=time.time(),
    )


def read(path):  # noqa: ANN001, ANN201
    """Return a file's text; nothing when it cannot be read."""
    try:
        with open(path, errors="replace") as file:  # noqa: PTH123
            return file.read()
    except OSError:
        return ""


def os_release():  # noqa: ANN201
    """Return the fields of os-release(5)."""
    lines = (line.partition("=") for line in read("/etc/os-release").splitlines())
    return {key: value.strip("\"'") for key, _, value in lines if key}


def free_mb(directory):  # noqa: ANN001, ANN201
    """Return the MiB that are free where a directory is, or will be."""
    while not os.path.exists(directory):  # noqa: PTH110
        directory = os.path.dirname(directory)  # noqa: PTH120
    status = os.statvfs(directory)
    return status.f_bavail * status.f_frsize // 1024 // 1024


def used_mb(directory):  # noqa: ANN001, ANN201
    """Return the MiB that the files below a directory take on disk; nothing when it is not there."""
    total = 0
    for parent, _, names in os.walk(directory):
        for name in names:
            try:
                total += os.lstat(os.path.join(parent, name)).st_blocks * 512  # noqa: PTH118
            except OSError:
                continue  # deleted meanwhile
    return total // 1024 // 1024


def listeners():  # noqa: ANN201
    """Return who listens by TCP: port, whether on loopback only or on every address, process, pid and systemd unit."""
    sockets = {}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in read(table).splitlines()[1:]:
            fields = line.split()
            address, _, port = fields[1].partition(":")
            if fields[3] == "0A":
                # Addresses are little-endian hexadecimal; these are 127.x.y.z, the same mapped into IPv6, and ::1.
                loopback = address.endswith("7F") or address == "00000000000000000000000001000000"
                wildcard = not address.strip("0")
                sockets[f"socket:[{fields[9]}]"] = {"port": int(port, 16), "loopback": loopback, "wildcard": wildcard}
    # In order, so that of a socket which systemd has handed on the one who got it is told.
    for pid in sorted(filter(str.isdigit, os.listdir("/proc") if sockets else []), key=int):  # noqa: PTH208
        try:
            links = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]  # noqa: PTH115, PTH208
        except OSError:
            continue  # it has ended, or is not ours to look at
        for link in set(links) & set(sockets):
            unit = re.search(r"([^/\s]+\.(?:service|socket|scope))", read(f"/proc/{pid}/cgroup"))
            sockets[link].update(
                process=read(f"/proc/{pid}/comm").strip(),
                pid=int(pid),
                unit=unit.group(1) if unit else "",
            )
    return [dict({"process": "", "pid": 0, "unit": ""}, **found) for found in sockets.values()]


def ssh_ports(found):  # noqa: ANN001, ANN201
    """Return the ports at which sshd can be reached from outside, also those that systemd holds for it."""
    ports = {each["port"] for each in found if each["process"] == "sshd" and not each["loopback"]}
    try:
        sockets = subprocess.run(["systemctl", "list-sockets", "--no-legend"], capture_output=True, text=True)
    except OSError:
        return sorted(ports)  # without systemd, for which the host is refused
    held = re.findall(r"^\S*:(\d+)\s+sshd?\.socket\b", sockets.stdout, re.MULTILINE)
    return sorted(ports | set(map(int, held)))


def firewalls():  # noqa: ANN201
    """Return the nftables tables of others that drop what they do not know; iptables and ufw make such ones too."""
    try:
        listed = subprocess.run(["/usr/sbin/nft", "--json", "list", "chains"], capture_output=True, text=True)
    except OSError:
        return []  # it is not installed yet
    chains = [item.get("chain", {}) for item in json.loads(listed.stdout or "{}").get("nftables", [])]
    closed = [each for each in chains if each.get("hook") == "input" and each.get("policy") == "drop"]
    return sorted({f"{each['family']} {each['table']}" for each in closed} - {"inet watchpost"})


if __name__ == "__main__":
    main()
