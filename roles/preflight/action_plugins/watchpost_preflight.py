"""Judge the host, the inventory, the registry of endpoints and every variable that the user has set.

All problems are reported together, each naming the thing and, where it can, what to do.
"""

from __future__ import annotations

import difflib
import ipaddress
import json
import re
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ansible.errors import AnsibleError
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.plugins.action import ActionBase

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))  # the project is not installed where Ansible runs

TESTED = {("debian", "12"), ("debian", "13"), ("ubuntu", "24.04")}
ARCHITECTURES = ("x86_64", "aarch64")
PYTHON = (3, 11)

# An endpoint in the registry has exactly these fields; a tuple lists what a field may be.
ENDPOINT_FIELDS: dict[str, tuple[str, ...] | type] = {
    "bind": ("loopback", "any"),
    "port": int,
    "scheme": ("https", "grpcs", "ssh"),
    "auth": ("client_certificate", "token", "login", "public", "ssh"),
    "callers": list,
}
# Whole numbers are sizes, times and counts, of which there must be at least one, except these: here 0 says "none".
MAY_BE_ZERO = (
    "gateway_hsts_seconds",
    "gateway_otlp_burst",
    "preflight_max_clock_offset",
    "preflight_min_memory_mb",
    "prometheus_out_of_order_hours",
)
# Where all data lies, and what may fill it: variable -> MiB of one of its units, components of which one must be here.
DATA = "/var/lib/watchpost"
BUDGETS = {
    "tempo_retention_gib": (1024, ["tempo"]),
    "loki_retention_gib": (1024, ["loki"]),
    "prometheus_retention_gib": (1024, ["prometheus"]),
    "taskboard_max_mib": (1, ["taskboard"]),
    "otel_collector_queue_mib": (3, ["otel_collector"]),  # a queue for each signal
    "agent_queue_mib": (3, ["agent"]),  # likewise
    # Must stay free beside that: a store is stopped below this, and started again at twice as much.
    "retention_least_free_mib": (2, ["tempo", "loki", "prometheus"]),
    "retention_agent_least_free_mib": (2, ["agent"]),
}
# What had another name in an earlier version.
RENAMED = {"gateway_allowed_origins": "gateway_pages"}
# Made by `inputs` and by this in the course of a run; nobody sets them.
MADE_LATER = ("watchpost_artifacts", "watchpost_secrets", "watchpost_ssh_ports")


class Problem(NamedTuple):
    """Something that is wrong: what kind of thing, in words, and the component whose it is, if it is one's alone."""

    check: str
    problem: str
    component: str = ""


class ActionModule(ActionBase):
    """The controller's half of the module of the same name."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Collect the problems; fail when there are any."""
        result = super().run(tmp, task_vars)
        args, variables = self._task.args, task_vars or {}
        roles = {
            role.name: role for role in Path(args["roles"]).iterdir() if (role / "meta/argument_specs.yml").exists()
        }
        problems = [Problem("variables", problem) for problem in self._variables(roles, variables)]
        # Whatever of these cannot be worked out is among the problems already.
        registry = as_mapping(self._value("watchpost_endpoints"))
        components = as_list(self._value("watchpost_components"))
        inventory = [
            *name_problems(self._value("watchpost_public_name")),
            *registry_problems(registry, components, as_list(self._value("pki_extra_identities"))),
            *group_problems(registry, components, variables["groups"], variables["inventory_hostname"]),
        ]
        problems += [Problem("variables", problem) for problem in inventory]
        problems += self._host(result, args, variables, registry, components)
        if problems:
            count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
            lines = "\n".join(f"  - {problem}" for _, problem, _ in problems)
            result.update(failed=True, msg=f"preflight found {count}; nothing was changed:\n{lines}")
            result["problems"] = [problem._asdict() for problem in problems]
        return result

    def _value(self, name: str) -> object:
        try:
            return self._templar.template(self._raw.get(name))
        except AnsibleError:
            return None

    def _variables(self, roles: dict[str, Path], variables: dict[str, Any]) -> Iterator[str]:
        """Check every variable that is set and has a role's prefix against that role's specification."""
        # A value may refer to another role's default, which Ansible does not know before that role's turn.
        defaults: dict[str, Any] = {"watchpost_artifacts": {}}
        specs: dict[str, dict[str, Any]] = {}
        for name, role in roles.items():
            entries = self._loader.load_from_file(str(role / "meta/argument_specs.yml"))["argument_specs"]
            specs[name] = entries["main"].get("options") or {}
            if "shared" in entries:
                specs["watchpost"] = entries["shared"]["options"]
            for kind in ("defaults", "vars"):
                if (file := role / kind / "main.yml").exists():
                    defaults.update(self._loader.load_from_file(str(file), trusted_as_template=True) or {})
        defaults["watchpost_secrets"] = dict.fromkeys(defaults["__inputs_generations"], "")
        self._raw = {**defaults, **variables}
        self._templar = self._templar.copy_with_new_env(available_variables=self._raw)

        for name in variables:
            # The longest prefix wins: otel_collector_x is not a variable of a role otel.
            role_name = max((r for r in specs if name.startswith(f"{r}_")), key=len, default=None)
            if role_name and name not in specs[role_name] and name not in MADE_LATER:
                if name in RENAMED:
                    yield f"{name} is now {RENAMED[name]}, which is written otherwise: see its role's defaults"
                    continue
                near = difflib.get_close_matches(name, specs[role_name], 1, 0.6)
                owner = "a shared variable" if role_name == "watchpost" else f"a variable of the role {role_name}"
                yield f"{name} is not {owner}" + (f"; did you mean {near[0]}?" if near else "")
        wanted = {*variables["group_names"], "preflight", "inputs", "host", "pki", "watchpost"}
        wanted.discard("service")  # whose callers give it what it requires
        alone = {name: list(self._alone(spec, variables, wanted=name in wanted)) for name, spec in specs.items()}
        for name, problems in alone.items():
            try:
                # When each value is sound by itself: what the role has against them taken together.
                yield from problems or self._templar.template(self._raw.get(f"__{name}_problems", []))
            except AnsibleError as error:
                # With a problem named already, that may well be the reason.
                if not any(alone.values()):
                    yield f"the check of the role {name} (__{name}_problems) cannot be worked out: {one_line(error)}"

    def _alone(self, spec: dict[str, Any], variables: dict[str, Any], *, wanted: bool) -> Iterator[str]:
        """Check each variable of a role by itself; of a role that is wanted here, what it requires must be set."""
        values = {}
        for name, option in spec.items():
            if name in variables:
                try:
                    values[name] = self._templar.template(variables[name])
                except AnsibleError as error:
                    yield f"{name} cannot be worked out: {one_line(error)}"
            elif option.get("required") and wanted:
                yield f"{name} is not set: {option['description']}"
        checked = {name: spec[name] for name in values}
        result = ArgumentSpecValidator(checked).validate(values, validate_role_argument_spec=True)
        yield from result.error_messages
        yield from number_problems(checked, result.validated_parameters)

    def _host(
        self,
        result: dict[str, Any],
        args: dict[str, Any],
        variables: dict[str, Any],
        registry: Mapping[str, Any],
        components: list[str],
    ) -> Iterator[Problem]:
        """Look at the host and judge what is there; what other roles must know of it goes into the result's facts."""
        endpoints = {
            endpoint["port"]: (f"{component}.{name}", endpoint["bind"])
            for component in components
            for name, endpoint in as_mapping(registry.get(component)).items()
            if not list(endpoint_problems("", endpoint, None))
        }
        began = time.time()
        found = self._execute_module(
            module_name="watchpost_preflight",
            module_args={
                "directories": list(args["min_disk_mb"]),
                "ports": list(endpoints),
                "data": DATA,
                "config": str(self._value("watchpost_config_dir")),
            },
            task_vars=variables,
        )
        ended = time.time()
        if found.get("failed") or "clock" not in found:
            yield Problem("host", f"the host cannot be looked at: {found.get('msg', found)}")
            return
        result["ansible_facts"] = {"watchpost_ssh_ports": found["ssh_ports"]}
        if (ports := sorted(port for port, (_, bind) in endpoints.items() if bind == "any")) and found["firewalls"]:
            result["warnings"] = [
                f"another firewall is at work on the host (nft list table {', '.join(found['firewalls'])}); "
                f"it must let in TCP {', '.join(map(str, ports))} too, or nobody reaches the appliance"
            ]
        release = found["os_release"]
        if (release.get("ID"), release.get("VERSION_ID")) not in TESTED and not args["allow_untested_os"]:
            yield Problem(
                "host",
                f"the operating system is {release.get('PRETTY_NAME', 'unknown')}; Watchpost is tested on Debian 12, "
                "Debian 13 and Ubuntu 24.04 (to go on all the same: preflight_allow_untested_os)",
            )
        if found["architecture"] not in ARCHITECTURES:
            yield Problem(
                "host",
                f"the CPU architecture is {found['architecture']}; it must be one of {', '.join(ARCHITECTURES)}",
            )
        if found["init"] != "systemd":
            yield Problem("host", f"process 1 is {found['init'] or 'unknown'}; Watchpost needs systemd")
        if tuple(int(part) for part in found["python"].split(".")[:2]) < PYTHON:
            yield Problem(
                "host", f"the host's Python is {found['python']}; it must be at least {PYTHON[0]}.{PYTHON[1]}"
            )
        if found["user_id"] != 0:
            yield Problem("host", "Ansible is not root on the host; set ansible_user: root or ansible_become: true")
        if found["memory_mb"] < args["min_memory_mb"]:
            yield Problem(
                "host",
                f"the host has {found['memory_mb']} MiB of memory; preflight_min_memory_mb is {args['min_memory_mb']}",
            )
        for directory, needed in args["min_disk_mb"].items():
            if found["free_mb"][directory] < needed:
                yield Problem(
                    "disk",
                    f"{directory} has {found['free_mb'][directory]} MiB free; preflight_min_disk_mb demands {needed}",
                )
        budgets = {name: self._value(name) for name in BUDGETS}
        for problem in budget_problems(budgets, components, found["data_mb"]):
            yield Problem("disk", problem)
        offset = max(began - found["clock"], found["clock"] - ended)
        if offset > args["max_clock_offset"]:
            side = "behind" if found["clock"] < began else "ahead of"
            yield Problem(
                "clock",
                f"the host's clock is {offset:.0f} s {side} this machine's; "
                "set it right, as certificates and traces depend on it",
            )
        if self._value("watchpost_owns_host") and not args["allow_other_secrets"]:
            deployment, inventory = str(self._value("watchpost_deployment")), str(variables.get("inventory_dir", ""))
            for problem in secrets_problems(deployment, found, inventory):
                yield Problem("host", problem)
        for listener in found["listeners"]:
            key, bind = endpoints[listener["port"]]
            ours = listener["unit"].startswith("watchpost-")
            if not ours and (bind == "any" or listener["loopback"] or listener["wildcard"]):
                yield Problem(
                    "host",
                    f"port {listener['port']} is taken by {listener['process'] or 'an unknown process'} "
                    f"(pid {listener['pid']}, {listener['unit'] or 'no unit'}); stop that, or change the port of "
                    f"{key} in group_vars/all/endpoints.yml",
                    key.partition(".")[0],
                )


def number_problems(spec: Mapping[str, Any], values: Mapping[str, Any]) -> Iterator[str]:
    """Check that no whole number is below the smallest that can be meant."""
    for name, option in spec.items():
        smallest = 0 if name in MAY_BE_ZERO else 1
        if option.get("type") == "int" and isinstance(values[name], int) and values[name] < smallest:
            yield f"{name} is {values[name]}; it must be at least {smallest}"


def budget_problems(values: Mapping[str, Any], components: list[str], room_mb: int) -> Iterator[str]:
    """Check that all that may be kept on this host fits onto its disk."""
    wanted = {
        name: values[name] * mib
        for name, (mib, stores) in BUDGETS.items()
        if not set(components).isdisjoint(stores) and isinstance(values[name], int)
    }
    if sum(wanted.values()) > room_mb:
        sums = ", ".join(f"{name} {mib} MiB" for name, mib in wanted.items())
        yield (
            f"{DATA} has room for {room_mb} MiB, but {sum(wanted.values())} MiB may be kept there ({sums}); "
            "keep less, or give it a larger disk"
        )


def secrets_problems(deployment: str, found: Mapping[str, Any], inventory: str) -> Iterator[str]:
    """Check that a run would neither replace the host's secrets nor give it those of another's."""
    from watchpost.secrets import SecretsError, estranged

    try:
        problem = estranged(deployment, json.loads(found["mark"] or "{}"), inventory, installed=found["installed"])
    except (SecretsError, OSError, ValueError) as error:
        problem = f"whether the host's secrets are those of deployment {deployment} cannot be told: {error}"
    if problem:
        yield f"{problem}; to go on all the same: preflight_allow_other_secrets"


def name_problems(name: object) -> Iterator[str]:
    """Check that the public name can stand in addresses and certificates."""
    if not isinstance(name, str):
        return  # it is among the problems already
    try:
        sound = "%" not in name and bool(ipaddress.ip_address(name))  # with a zone it means something to one host only
    except ValueError:
        sound = all(re.fullmatch(r"\w([\w-]*\w)?", label, re.ASCII) for label in name.split("."))
    if not sound:
        yield (
            f"watchpost_public_name is {name!r}; it must be a host name or an address, without scheme, port, brackets "
            "or blanks (the port is watchpost_endpoints.gateway.https.port)"
        )


def registry_problems(registry: Mapping[str, Any], components: list[str], extra_identities: list[str]) -> Iterator[str]:
    """Check the registry of endpoints: fields, choices, callers, and ports given twice on this host."""
    callers = {*registry, "operator", "outside", *extra_identities}
    for component, endpoints in registry.items():
        if not isinstance(endpoints, Mapping) or not endpoints:
            yield f"watchpost_endpoints.{component} must map names to endpoints"
            continue
        for name, endpoint in endpoints.items():
            yield from endpoint_problems(f"watchpost_endpoints.{component}.{name}", endpoint, callers)
    taken: dict[int, str] = {}
    for component in ("host", *components):
        for name, endpoint in as_mapping(registry.get(component)).items():
            port = as_mapping(endpoint).get("port")
            if port in taken:
                yield f"port {port} is given twice in watchpost_endpoints: to {taken[port]} and to {component}.{name}"
            taken[port] = f"{component}.{name}"


def endpoint_problems(key: str, endpoint: object, callers: set[str] | None) -> Iterator[str]:
    """Check one endpoint of the registry; its callers only against a set of them."""
    if not isinstance(endpoint, Mapping):
        yield f"{key} must be a mapping of {', '.join(ENDPOINT_FIELDS)}"
        return
    for field in endpoint:
        if field not in ENDPOINT_FIELDS:
            near = difflib.get_close_matches(field, ENDPOINT_FIELDS, 1, 0.6)
            yield f"{key}.{field} is not a field of an endpoint" + (f"; did you mean {near[0]}?" if near else "")
    for field, allowed in ENDPOINT_FIELDS.items():
        value = endpoint.get(field)
        if field not in endpoint:
            yield f"{key} has no {field}"
        elif isinstance(allowed, tuple):
            if value not in allowed:
                yield f"{key}.{field} is {value}; it must be one of {', '.join(allowed)}"
        elif allowed is int:
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 65535:
                yield f"{key}.{field} is {value}; it must be a whole number from 1 to 65535"
        elif not isinstance(value, list):
            yield f"{key}.{field} is {value}; it must be a list"
        else:
            for unknown in [caller for caller in value if callers is not None and caller not in callers]:
                near = difflib.get_close_matches(str(unknown), callers or (), 1, 0.6)
                yield f"{key}.{field} names {unknown}, which nobody is" + (f"; did you mean {near[0]}?" if near else "")


def group_problems(
    registry: Mapping[str, Any], components: list[str], groups: dict[str, list[str]], hostname: str
) -> Iterator[str]:
    """Check the inventory's groups: misspelt components, and components on a host that is not prepared."""
    known = [component for component in registry if component != "host"]
    for component in components:
        if component not in known:
            yield f"watchpost_components names {component}, which watchpost_endpoints does not have"
    if not components:
        yield f"{hostname} is in no component's group, so there is nothing to run; the groups are {', '.join(known)}"
    for group, members in groups.items():
        if group == "agent":
            if own := sorted(set(members) & set(groups.get("watchpost", []))):
                yield f"{', '.join(own)} must not be in the inventory group agent: the appliance measures itself"
            if hostname in members and not groups.get("otel_collector"):
                yield "no host is in the inventory group otel_collector, so this agent has nobody to send to"
        elif group in known:
            if strays := sorted(set(members) - set(groups.get("watchpost", []))):
                yield f"{', '.join(strays)} must be in the inventory group watchpost too, as {group} runs there"
        elif near := difflib.get_close_matches(group.replace("-", "_"), known, 1, 0.8):
            yield f"the inventory group {group} is not a component; did you mean {near[0]}?"


def as_mapping(value: object) -> Mapping[str, Any]:
    """Return a mapping as it is, and anything else as an empty one."""
    return value if isinstance(value, Mapping) else {}


def as_list(value: object) -> list[Any]:
    """Return a list as it is, and anything else as an empty one."""
    return value if isinstance(value, list) else []


def one_line(error: Exception) -> str:
    """Return an error's own words, without line breaks."""
    return " ".join(str(error).split())
