"""Sets up Parseable for the stack: streams, an ingestor, a reader, and files with their secrets.

Setup can be run repeatedly: it leaves what exists as it is, and only adds rights to a role, unless
revoking one is requested explicitly. Parseable generates the passwords and shows them only once;
they are written to files of mode 0600 and nowhere else.
"""

from __future__ import annotations

import base64
import json
import os
import stat
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import httpx
from msgspec import Struct

from vllm_capacity.errors import InputError, SourceError
from vllm_capacity.sources.parseable_queries import quoted

INGEST_SECRET: Final = "ingest_authorization"
READER_SECRET: Final = "reader_password"
READER_PROFILE: Final = "reader.toml"
_INGEST_ROLE: Final = "vllm_ingestor"
_READER_ROLE: Final = "vllm_reader"
_ROLES: Final = ((_INGEST_ROLE, "ingestor"), (_READER_ROLE, "reader"))


class Names(Struct, frozen=True):
    """The names of the stack's streams and users."""

    metrics_stream: str = "vllm_metrics"
    traces_stream: str = "vllm_traces"
    ingest_user: str = "collector"
    reader_user: str = "planner"

    def __post_init__(self) -> None:
        if self.metrics_stream == self.traces_stream:
            raise InputError(f"Metrics and spans need two streams, not both {self.traces_stream}.")

    @property
    def log_sources(self) -> Mapping[str, str]:
        """The log source that each stream is created for."""
        return {self.metrics_stream: "otel-metrics", self.traces_stream: "otel-traces"}


class Management(Struct, frozen=True):
    """Parseable's management API, with an administrator's `client` (base URL and credentials)."""

    client: httpx.Client

    def call(
        self,
        method: str,
        path: str,
        *,
        body: object = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        """The answer; on failure, a SourceError with the request, the reply and what to try."""
        try:
            answer = self.client.request(method, path, headers=headers, json=body)
        except httpx.TransportError as error:
            raise SourceError(
                f"{method} {path}: no answer from {self.client.base_url} ({error}). "
                "Is Parseable running, and is PARSEABLE_URL right?"
            ) from None
        if answer.is_success:
            return answer
        raise SourceError(
            f"{method} {path} on {self.client.base_url}: {answer.status_code}"
            f" {answer.text.strip()[:300]!r}. {_remedy(answer.status_code, answer.text)}"
        )

    def read(self, path: str) -> Any:  # noqa: ANN401  JSON may be anything
        """The JSON answer to a GET of the path; SourceError if it is not JSON."""
        try:
            return self.call("GET", path).json()
        except (ValueError, RecursionError):
            raise self._strange(path) from None

    def record(self, path: str) -> dict[str, Any]:
        """The object returned by a GET of the path."""
        answer = self.read(path)
        if not isinstance(answer, dict):
            raise self._strange(path)
        return answer

    def records(self, path: str, *keys: str) -> list[dict[str, Any]]:
        """The list of objects, each with these keys, returned by a GET of the path."""
        answer = self.read(path)
        if not isinstance(answer, list) or not all(
            isinstance(each, dict) and each.keys() >= set(keys) for each in answer
        ):
            raise self._strange(path)
        return answer

    def streams(self) -> set[str]:
        """The names of the streams that this user can see."""
        return {str(stream["name"]) for stream in self.records("/api/v1/logstream", "name")}

    def users(self) -> set[str]:
        """The names of all users."""
        return {str(user["id"]) for user in self.records("/api/v1/user", "id")}

    def rights(self, role: str) -> list[dict[str, Any]]:
        """The rights of a role; empty if there is no such role.

        SourceError if the answer is not a list of rights, since the rights could then not be kept.
        """
        found = self.read(f"/api/v1/role/{role}")
        if isinstance(found, dict):  # depends on version: a list, or one of these
            rights = next((found[key] for key in ("actions", "privileges") if key in found), None)
        else:
            rights = found
        if not isinstance(rights, list) or not all(isinstance(right, dict) for right in rights):
            raise SourceError(
                f"Parseable returned the rights of the role {role} in an unknown form. Nothing was "
                "changed, so that none are lost. Add the stream to the role by hand."
            )
        return rights

    def _strange(self, path: str) -> SourceError:
        return SourceError(
            f"{self.client.base_url} does not answer {path} as Parseable does. Is PARSEABLE_URL "
            "right?"
        )


def _remedy(status: int, text: str) -> str:
    if "No field named" in text:
        return (
            "A stream has no columns until telemetry has arrived: let the Collector send a scrape "
            "(`vllm-capacity doctor` finds what prevents it), then run this again."
        )
    if status in (401, 403):
        return (
            "A wrong user or password is answered with 403: check PARSEABLE_ROOT_USER and "
            "PARSEABLE_ROOT_PASSWORD; they must be an administrator's."
        )
    if status == httpx.codes.NOT_FOUND:
        return "Is this Parseable 2.9.2 or newer?"
    return "Look at Parseable's log."


def initialise(
    client: httpx.Client,
    names: Names,
    secrets: Path,
    *,
    renew: bool = False,
    retention_days: int | None = None,
    revoke: Sequence[str] = (),
) -> list[str]:
    """Set up streams, roles, users and secret files; one line per thing done or found.

    `renew` gives both users new passwords; `revoke` names streams to which both lose their rights.
    `client` must be an administrator's.
    """
    management = Management(client)
    done = [f"Parseable {management.record('/api/v1/about').get('version')} answers"]
    _check_secrets(management.users(), names, secrets, renew=renew)
    roles = [_Role(name, privilege, management.rights(name)) for name, privilege in _ROLES]
    _check_revoked(revoke, names, roles)
    existing = management.streams()
    for stream, log_source in names.log_sources.items():
        done.append(_create_stream(management, stream, log_source, is_there=stream in existing))
        if retention_days is not None:
            done.append(_retain(management, stream, retention_days))
    done += [
        *(_put_role(management, role, names, revoke) for role in roles),
        _give_user(management, names.ingest_user, _INGEST_ROLE, secrets / INGEST_SECRET, renew),
        _give_user(management, names.reader_user, _READER_ROLE, secrets / READER_SECRET, renew),
        _write_profile(client, names.reader_user, secrets),
    ]
    return done + verify(client, names, secrets)


class _Role(Struct, frozen=True):
    """A role, the privilege it grants, and its current rights."""

    name: str
    privilege: str
    rights: list[dict[str, Any]]

    def right(self, stream: str) -> dict[str, Any]:
        return {"privilege": self.privilege, "resource": {"stream": stream}}


def _check_revoked(revoke: Sequence[str], names: Names, roles: Sequence[_Role]) -> None:
    """Check, before any change, that rights to revoke exist and are not also to be granted."""
    for stream in revoke:
        if stream in names.log_sources:
            raise InputError(f"The stream {stream} cannot be both set up and revoked.")
        if not any(role.right(stream) in role.rights for role in roles):
            raise InputError(f"No role of the stack has a right to the stream {stream!r}.")


def _write_profile(client: httpx.Client, user: str, secrets: Path) -> str:
    """Write the reader's settings as a profile for `vllm-capacity pull --profile`."""
    path = secrets / READER_PROFILE
    password = read_secret(secrets / READER_SECRET).strip()
    settings = {"url": str(client.base_url).rstrip("/"), "user": user, "password": password}
    text = "".join(f"{name} = {json.dumps(value)}\n" for name, value in settings.items())
    if not path.exists() or path.read_bytes() != text.encode():
        write_secret(path, text)
    return f"profile {path}: for `vllm-capacity pull --profile` and `doctor`"


def _check_secrets(users: set[str], names: Names, secrets: Path, *, renew: bool) -> None:
    """Check, before any change, that secrets exist: a user without one needs a new password."""
    for user, name in ((names.ingest_user, INGEST_SECRET), (names.reader_user, READER_SECRET)):
        if user in users and not (secrets / name).exists() and not renew:
            raise InputError(
                f"Parseable has a user {user!r}, but its secret {secrets / name} is not there. Put "
                "the file back, or run again with --renew: both users get new passwords, and "
                "clients with the old ones are refused."
            )


def _create_stream(management: Management, stream: str, log_source: str, *, is_there: bool) -> str:
    path = f"/api/v1/logstream/{stream}"
    if not is_there:
        management.call("PUT", path, headers={"X-P-Log-Source": log_source})
        return f"stream {stream}: created for {log_source}"
    sources = management.record(f"{path}/info").get("logSource") or []
    formats = {source.get("log_source_format") for source in sources}
    if formats and log_source not in formats:
        raise InputError(
            f"The stream {stream} has {', '.join(sorted(map(str, formats)))}, not {log_source}. "
            "Choose another stream; delete it only if nobody needs its data."
        )
    return f"stream {stream}: exists already"


def _retain(management: Management, stream: str, days: int) -> str:
    rule = {"description": f"{days} days", "action": "delete", "duration": f"{days}d"}
    management.call("PUT", f"/api/v1/logstream/{stream}/retention", body=[rule])
    return f"stream {stream}: kept for {days} days"


def _put_role(management: Management, role: _Role, names: Names, revoke: Sequence[str]) -> str:
    """Update a role: keep its rights except those revoked, and add those to these streams."""
    gone = [role.right(stream) for stream in revoke]
    kept = [right for right in role.rights if right not in gone]
    new = [right for right in map(role.right, names.log_sources) if right not in kept]
    if kept + new != role.rights:
        management.call("PUT", f"/api/v1/role/{role.name}", body=kept + new)
    lost = f", no longer of {', '.join(revoke)}" if len(kept) < len(role.rights) else ""
    streams = (str((right.get("resource") or {}).get("stream", "all")) for right in kept + new)
    return f"role {role.name}: {role.privilege} of {', '.join(streams)}{lost}"


def _give_user(management: Management, user: str, role: str, secret: Path, renew: bool) -> str:
    is_there = user in management.users()
    if is_there and not renew:
        return f"user {user}: exists already, secret in {secret}"
    if is_there:
        answer = management.call("POST", f"/api/v1/user/{user}/generate-new-password")
    else:
        answer = management.call("POST", f"/api/v1/user/{user}", body=[role])
    password = answer.text.strip().strip('"')
    if not password:
        raise SourceError(f"Parseable gave no password for {user!r}; run again with --renew.")
    is_header = secret.name == INGEST_SECRET
    write_secret(secret, basic_authorization(user, password) if is_header else password)
    return f"user {user}: {'new password' if is_there else 'created'}, secret in {secret}"


def basic_authorization(user: str, password: str) -> str:
    """The value of the Authorization header."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def write_secret(path: Path, text: str) -> None:
    """Write the file atomically; only its owner can ever read it.

    No newline is added: the Collector would send it as part of the header, and fail.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    partial.unlink(missing_ok=True)
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    partial.replace(path)


def read_secret(path: Path) -> str:
    """The text of a file that only its owner can read; InputError otherwise."""
    try:
        if path.stat().st_mode & 0o077:
            mode = stat.S_IMODE(path.stat().st_mode)
            raise InputError(
                f"{path} has a password and others can read it (mode {mode:04o}): chmod 600 it."
            )
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is not text.") from None


def is_sendable(text: str) -> bool:
    """Whether a header can carry the text; if not, the error from sending it would show it."""
    return bool(text) and text == text.strip() and text.isascii() and text.isprintable()


def newest_arrival(client: httpx.Client, stream: str) -> str | None:
    """When data last arrived in the stream within the last 15 minutes; None if none did.

    It is Parseable's own text for the time, which sorts chronologically.
    """
    body = {
        "query": f"select max(p_timestamp) as newest from {quoted(stream)}",
        "startTime": "15m",
        "endTime": "now",
    }
    try:
        rows = Management(client).call("POST", "/api/v1/query", body=body).json()
    except (SourceError, ValueError):
        return None  # a stream without columns yet refuses every query
    is_row = isinstance(rows, list) and rows and isinstance(rows[0], dict)
    newest = rows[0].get("newest") if is_row else None
    return str(newest) if newest else None


def writing_goes_on(
    client: httpx.Client,
    stream: str,
    *,
    before: str | None,
    looks: int,
    pause: Callable[[], None],
) -> str:
    """A line saying that data has arrived in the stream since `before`, an earlier newest arrival.

    SourceError if none has after that many looks. If `before` is None, nothing is checked.
    """
    if before is None:
        return f"stream {stream}: nothing was being written to it"
    for _ in range(looks):
        newest = newest_arrival(client, stream)
        if newest is not None and newest > before:
            return f"checked: {stream} is being written to"
        pause()
    raise SourceError(
        f"Nothing has been written to {stream} since the new password. The Collector drops refused "
        "data: restart it now. `vllm-capacity doctor` shows when it writes again."
    )


def verify(client: httpx.Client, names: Names, secrets: Path) -> list[str]:
    """Check that each user has exactly its rights, one line per user; SourceError if not.

    Nothing is written: the test export contains no points.
    """
    password = read_secret(secrets / READER_SECRET).strip()
    reader = basic_authorization(names.reader_user, password)
    ingestor = read_secret(secrets / INGEST_SECRET)
    if not is_sendable(ingestor):
        raise InputError(
            f"{secrets / INGEST_SECRET} starts or ends with a newline or space, or has a character "
            "that is not allowed in an HTTP header, and the Collector would send it unchanged: "
            "remove it."
        )
    stream, found = names.metrics_stream, []
    for user, authorization, should_write in (
        (names.ingest_user, ingestor, True),
        (names.reader_user, reader, False),
    ):
        may_write = not _is_refused(_export(client, authorization, stream))
        may_read = not _is_refused(_query(client, authorization, stream))
        if (may_write, may_read) != (should_write, not should_write):
            raise SourceError(
                f"The user {user} {_may(may_write)} write to {stream} and {_may(may_read)} read "
                f"it; it should be able to {'write' if should_write else 'read'} only. If it can "
                "do neither, its secret is not its password: run again with --renew."
            )
        found.append(f"checked: {user} {_may(may_write)} write and {_may(may_read)} read")
    return found


def _may(is_allowed: bool) -> str:
    return "can" if is_allowed else "cannot"


def _is_refused(answer: httpx.Response) -> bool:
    """Whether access is refused: 401, 403, or a query's 400 for a user without the right."""
    return answer.status_code in (401, 403) or "does not have access" in answer.text


def _export(client: httpx.Client, authorization: str, stream: str) -> httpx.Response:
    headers = {
        "Authorization": authorization,
        "X-P-Stream": stream,
        "X-P-Log-Source": "otel-metrics",
    }
    return _post(client, "/v1/metrics", headers, {"resourceMetrics": []})


def _query(client: httpx.Client, authorization: str, stream: str) -> httpx.Response:
    body = {
        "query": f"select count(1) as n from {quoted(stream)}",
        "startTime": "1m",
        "endTime": "now",
    }
    return _post(client, "/api/v1/query", {"Authorization": authorization}, body)


def _post(client: httpx.Client, path: str, headers: dict[str, str], body: object) -> httpx.Response:
    """The answer to these headers: httpx.Auth() stops the client from adding its credentials."""
    try:
        return client.post(path, headers=headers, json=body, auth=httpx.Auth())
    except httpx.TransportError as error:
        raise SourceError(f"POST {path}: no answer from {client.base_url} ({error}).") from None
