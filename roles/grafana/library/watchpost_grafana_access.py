#!/usr/bin/python
"""Ansible module: give Grafana the accounts, teams and service accounts that the variables name, and no others."""

from __future__ import annotations

import base64
import http.client
import json
import ssl
from typing import Any
from urllib.parse import quote, urlsplit

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: watchpost_grafana_access
short_description: Give Grafana the accounts, teams and service accounts that are wanted, and no others
description:
  - Makes accounts, sets their roles, passwords and teams; logins by an earlier password end. An account that is not
    wanted is disabled, not deleted, so that what belongs to it stays; one that logs in by OIDC is left alone. Teams and
    service accounts that are not wanted go.
options:
  url: {description: "Grafana's address on this host, with its path.", type: str, required: true}
  ca: {description: CA that signs its certificate., type: path, required: true}
  admin_password: {description: Password of C(admin)., type: str, required: true}
  users: {description: "login -> name, email, role, teams.", type: dict, default: {}}
  passwords: {description: "login -> password.", type: dict, default: {}}
  service_accounts: {description: "name -> role.", type: dict, default: {}}
author: Watchpost
"""

RETURN = r"""
actions: {description: What was done, or would be in check mode, type: list, returned: always}
"""

ADMIN = "admin"


class Refused(Exception):
    """Grafana has refused something; the message says what and why, and holds no password."""


class Api:
    """Grafana's HTTP API, asked as one account."""

    def __init__(self, url: str, ca: str, password: str, login: str = ADMIN) -> None:
        """Remember whom to ask, and as whom."""
        self.url = urlsplit(url)
        self.context = ssl.create_default_context(cafile=ca)
        self.headers = {
            "Authorization": "Basic " + base64.b64encode(f"{login}:{password}".encode()).decode(),
            "Content-Type": "application/json",
        }

    def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, Any]:
        """Return status and content of an answer."""
        connection = http.client.HTTPSConnection(
            self.url.hostname or "", self.url.port or 443, timeout=30, context=self.context
        )
        try:
            text = None if body is None else json.dumps(body)
            connection.request(method, self.url.path + path, text, self.headers)
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        try:
            return answer.status, json.loads(content)
        except ValueError:
            return answer.status, content.decode(errors="replace")

    def do(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:  # noqa: ANN401 - what JSON holds
        """Return the content of an answer; raise Refused when it is an error."""
        status, content = self.ask(method, path, body)
        if status >= 300:
            reason = content.get("message", content) if isinstance(content, dict) else content
            raise Refused(f"Grafana answers {status} to {method} {path}: {str(reason)[:300]}")
        return content


class Access:
    """Who may do what in one Grafana."""

    def __init__(self, p: dict[str, Any], check: bool) -> None:
        """Take the module's parameters; with `check` nothing is changed."""
        self.p, self.check = p, check
        self.actions: list[str] = []

    def all(self) -> None:
        """Bring everything to what is wanted. Raises Refused; OSError when Grafana, or the CA's file, is not there."""
        self.api = Api(self.p["url"], self.p["ca"], self.p["admin_password"])
        self.users()
        self.teams()
        self.service_accounts()

    def act(self, what: str, method: str, path: str, body: dict[str, Any] | None = None) -> Any:  # noqa: ANN401
        """Do one thing, or only say so."""
        self.actions.append(what)
        return {} if self.check else self.api.do(method, path, body)

    def users(self) -> None:
        """Bring the accounts to what is wanted."""
        there = {user["login"]: user for user in self.api.do("GET", "/api/users?perpage=5000")}
        for login, wanted in self.p["users"].items():
            user = there.get(login) or self._make(login, wanted)
            if user:
                self._adapt(login, wanted, user)
        for login, user in there.items():
            wanted_or_not_ours = login in self.p["users"] or login == ADMIN or user.get("authLabels")
            if not wanted_or_not_ours and not user.get("isDisabled"):
                self.act(f"disabled {login}", "POST", f"/api/admin/users/{user['id']}/disable")

    def _make(self, login: str, wanted: dict[str, Any]) -> dict[str, Any] | None:
        body = {
            "login": login,
            "name": wanted["name"],
            "email": wanted["email"],
            "password": self.p["passwords"][login],
        }
        made = self.act(f"made {login}", "POST", "/api/admin/users", body)
        return {"id": made["id"], "fresh": True, **body} if made else None

    def _adapt(self, login: str, wanted: dict[str, Any], user: dict[str, Any]) -> None:
        number = user["id"]
        if user.get("isDisabled"):
            self.act(f"enabled {login}", "POST", f"/api/admin/users/{number}/enable")
        if (user["name"], user["email"]) != (wanted["name"], wanted["email"]):
            body = {"login": login, "name": wanted["name"], "email": wanted["email"]}
            self.act(f"changed {login}", "PUT", f"/api/users/{number}", body)
        roles = {member["userId"]: member["role"] for member in self.api.do("GET", "/api/org/users")}
        if roles.get(number) != wanted["role"]:
            self.act(f"{login} is {wanted['role']} now", "PATCH", f"/api/org/users/{number}", {"role": wanted["role"]})
        password = self.p["passwords"][login]
        # Grafana tells nobody's password; whether it is the wanted one is seen by its use.
        status, _ = Api(self.p["url"], self.p["ca"], password, login).ask("GET", "/api/user")
        if status == 401 and not user.get("fresh"):
            self.act(
                f"set the password of {login}", "PUT", f"/api/admin/users/{number}/password", {"password": password}
            )
            self.act(f"ended the logins of {login}", "POST", f"/api/admin/users/{number}/logout", {})

    def teams(self) -> None:
        """Bring the teams to those that accounts name, with just those members."""
        wanted: dict[str, set[str]] = {}
        for login, user in self.p["users"].items():
            for team in user["teams"]:
                wanted.setdefault(team, set()).add(login)
        there = {team["name"]: team["id"] for team in self.api.do("GET", "/api/teams/search?perpage=1000")["teams"]}
        known = {user["login"]: user["id"] for user in self.api.do("GET", "/api/users?perpage=5000")}
        for team, members in wanted.items():
            number = there.get(team) or self.act(f"made team {team}", "POST", "/api/teams", {"name": team}).get(
                "teamId"
            )
            if number is None:
                continue  # check mode: it would be made
            now = {member["login"]: member["userId"] for member in self.api.do("GET", f"/api/teams/{number}/members")}
            for login in members - now.keys():
                body = {"userId": known.get(login)}
                self.act(f"{login} is in team {team} now", "POST", f"/api/teams/{number}/members", body)
            for login in now.keys() - members:
                self.act(f"{login} has left team {team}", "DELETE", f"/api/teams/{number}/members/{now[login]}")
        for team in there.keys() - wanted.keys():
            self.act(f"removed team {team}", "DELETE", f"/api/teams/{there[team]}")

    def service_accounts(self) -> None:
        """Bring the accounts of programs to those that are wanted; their tokens are made by another playbook."""
        found = self.api.do("GET", "/api/serviceaccounts/search?perpage=1000")["serviceAccounts"]
        there = {account["name"]: account for account in found}
        for name, role in self.p["service_accounts"].items():
            account = there.get(name)
            if account is None:
                self.act(f"made service account {name}", "POST", "/api/serviceaccounts", {"name": name, "role": role})
            elif account["role"] != role:
                path = f"/api/serviceaccounts/{account['id']}"
                self.act(f"service account {name} is {role} now", "PATCH", path, {"role": role})
        for name in there.keys() - self.p["service_accounts"].keys():
            path = f"/api/serviceaccounts/{quote(str(there[name]['id']))}"
            self.act(f"removed service account {name} and its tokens", "DELETE", path)


def main() -> None:
    """Run the module."""
    option = dict
    module = AnsibleModule(
        argument_spec={
            "url": option(type="str", required=True),
            "ca": option(type="path", required=True),
            "admin_password": option(type="str", required=True, no_log=True),
            "users": option(type="dict", default={}),
            "passwords": option(type="dict", default={}, no_log=True),
            "service_accounts": option(type="dict", default={}),
        },
        supports_check_mode=True,
    )
    p = module.params
    access = Access(p, module.check_mode)
    try:
        access.all()
    except OSError as error:
        if not module.check_mode:
            module.fail_json(msg=f"{p['url']} does not answer: {error}", actions=access.actions)
        access.actions.append("nothing could be asked: Grafana does not run yet")
    except Refused as error:
        module.fail_json(msg=str(error), actions=access.actions, changed=bool(access.actions))
    module.exit_json(changed=bool(access.actions), actions=access.actions)


if __name__ == "__main__":
    main()
