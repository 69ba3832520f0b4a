"""Parseable's management calls, answered from the recorded exchanges of a real one.

Status and text of every answer are the recording's, found by what was asked; names are put in its
place. State (streams, users, alerts …) is kept, so that a second run meets what the first one made.
"""

from __future__ import annotations

import base64
import gzip
import json
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import httpx

RECORDING = Path(__file__).parents[1] / "data" / "parseable" / "exchanges.jsonl.gz"
ROOT = ("root-of-tests", "a-password-of-tests")


@cache
def recorded() -> list[dict[str, Any]]:
    with gzip.open(RECORDING, "rt") as lines:
        return [json.loads(line) for line in lines]


@dataclass
class RecordedParseable:
    """The handler of an httpx.MockTransport."""

    exchanges: list[dict[str, Any]] = field(default_factory=recorded)
    streams: dict[str, str] = field(default_factory=dict)
    users: dict[str, tuple[str, str]] = field(default_factory=dict)  # name: password, privilege
    roles: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    alerts: list[dict[str, Any]] = field(default_factory=list)
    dashboards: list[dict[str, Any]] = field(default_factory=list)
    calls: list[tuple[str, str]] = field(default_factory=list)
    ordinal: int = 0

    def client(self, auth: tuple[str, str] = ROOT) -> httpx.Client:
        return httpx.Client(
            base_url="http://parseable.test",
            auth=auth,
            transport=httpx.MockTransport(self),
            trust_env=False,
        )

    @property
    def writes(self) -> list[tuple[str, str]]:
        """The calls that change something."""
        harmless = ("/v1/metrics", "/api/v1/query")
        return [(m, p) for m, p in self.calls if m != "GET" and p not in harmless]

    def __call__(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path
        self.calls.append((request.method, path))
        privilege = self._privilege(request)
        if privilege is None:
            return self.answer("POST", "/api/v1/query", 403)  # wrong password
        if path == "/v1/metrics":
            return self._only(privilege, ("ingestor", "root"), "/v1/metrics")
        if path == "/api/v1/query":
            return self._only(privilege, ("reader", "root"), "/api/v1/query")
        if privilege == "reader" and request.method == "GET" and path != "/api/v1/user":
            return self._managed(request, path.removeprefix("/api/v1/").split("/"), None)
        if privilege != "root":
            return self.answer("DELETE", "/api/v1/logstream/vllm_metrics", 403)
        body = json.loads(request.content) if request.content else None
        return self._managed(request, path.removeprefix("/api/v1/").split("/"), body)

    def _managed(self, request: httpx.Request, parts: list[str], body: Any) -> httpx.Response:
        match request.method, *parts:
            case "GET", "about":
                return self.answer("GET", "/api/v1/about")
            case "GET", "logstream":
                return httpx.Response(200, json=[{"name": n} for n in ("pstats", *self.streams)])
            case "GET", "logstream", name, "info":
                if name not in self.streams:
                    return self.answer("GET", "/api/v1/logstream/nope/schema", 404)
                info = self.answer("GET", "/api/v1/logstream/smoke/info").json()
                info["logSource"][0]["log_source_format"] = self.streams[name]
                return httpx.Response(200, json=info)
            case "PUT", "logstream", name:
                is_new = self.streams.get(name) is None
                self.streams.setdefault(name, request.headers["X-P-Log-Source"])
                return self.answer("PUT", "/api/v1/logstream/vllm_metrics2", 200 if is_new else 400)
            case "PUT", "logstream", name, "retention":
                return self.answer("PUT", "/api/v1/logstream/vllm_metrics/retention")
            case "GET", "user":
                names = [{"id": name, "method": "native"} for name in (*self.users, ROOT[0])]
                return httpx.Response(200, json=names)
            case "GET", "role", name:  # 2.9.5 answers so even for an unknown role
                result = {"actions": self.roles.get(name, []), "roleType": "user"}
                return httpx.Response(200, json=result)
            case "PUT", "role", name:
                self.roles[name] = body
                return self.answer("PUT", "/api/v1/role/vllm_reader")
            case "POST", "user", name:
                return self._create_user(name, body)
            case "POST", "user", name, "generate-new-password":
                return self._new_password(name, self.users[name][1])
            case _:
                return self._held(request, parts, body)

    def _held(self, request: httpx.Request, parts: list[str], body: Any) -> httpx.Response:
        match request.method, *parts:
            case "GET", ("alerts" | "dashboards") as what:
                return httpx.Response(200, json=getattr(self, what))
            case "GET", ("alerts" | "dashboards") as what, key:
                return httpx.Response(200, json=self._one(what, key))
            case "POST", "alerts":
                answer = self.answer("POST", "/api/v1/alerts").json()
                held = {**answer, **body, "id": self._id(), "created": f"2026-{self.ordinal:06d}"}
                self.alerts.append(held)
                return httpx.Response(200, json=held)
            case "POST", "dashboards":
                if any(board["title"] == body["title"] for board in self.dashboards):
                    return self.answer("POST", "/api/v1/dashboards", 400)
                answer = self.answer("POST", "/api/v1/dashboards").json()
                self.dashboards.append({**answer, **body, "dashboardId": self._id()})
                return httpx.Response(200, json=self.dashboards[-1])
            case "PUT", ("alerts" | "dashboards") as what, key:
                self._one(what, key).update(body)
                return httpx.Response(200, json=self._one(what, key))
            case _:
                return self.answer("GET", "/api/v1/role", 404)

    def answer(self, method: str, path: str, status: int = 200) -> httpx.Response:
        """The recorded answer to such a call with that status."""
        for exchange in self.exchanges:
            asked = (exchange["method"], exchange["path"], exchange["status"])
            if asked == (method, path, status):
                kind = exchange["response_headers"].get("content-type", "text/plain")
                return httpx.Response(
                    status, headers={"Content-Type": kind}, content=exchange["response"]
                )
        raise AssertionError(f"no recorded {method} {path} with {status}")

    def _privilege(self, request: httpx.Request) -> str | None:
        encoded = request.headers.get("Authorization", "").removeprefix("Basic ")
        user, _, password = base64.b64decode(encoded).decode().partition(":")
        if (user, password) == ROOT:
            return "root"
        known = self.users.get(user)
        return known[1] if known is not None and known[0] == password else None

    def _only(self, privilege: str, allowed: tuple[str, ...], path: str) -> httpx.Response:
        return self.answer("POST", path, 200 if privilege in allowed else 403)

    def _create_user(self, name: str, roles: list[str]) -> httpx.Response:
        if name in self.users:
            return self.answer("POST", "/api/v1/user/planner", 400)
        if roles[0] not in self.roles:
            return self.answer("POST", "/api/v1/user/other", 400)
        return self._new_password(name, self.roles[roles[0]][0]["privilege"])

    def _new_password(self, name: str, privilege: str) -> httpx.Response:
        self.ordinal += 1
        password = f"made-up-by-parseable-{self.ordinal}"
        self.users[name] = (password, privilege)
        recorded_answer = self.answer("POST", "/api/v1/user/planner")
        text = recorded_answer.text.replace("<secret>", password)
        return httpx.Response(200, headers={"Content-Type": "text/plain"}, content=text)

    def _one(self, what: str, key: str) -> dict[str, Any]:
        held: list[dict[str, Any]] = getattr(self, what)
        name = "id" if what == "alerts" else "dashboardId"
        return next(item for item in held if item[name] == key)

    def _id(self) -> str:
        self.ordinal += 1
        return f"01M86A2FEWFWQ0CWH74KH{self.ordinal:05d}"
