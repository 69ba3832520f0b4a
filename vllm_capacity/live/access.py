"""Access to servers: URLs without credentials, secrets that fit in a header, HTTP clients.

Secrets come from the environment or from a file that only its owner can read, never from a URL:
URLs are visible in process lists, shell histories and messages.
"""

from __future__ import annotations

import re
import ssl
import tomllib
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from vllm_capacity.errors import InputError
from vllm_capacity.live.stack import is_sendable, read_secret
from vllm_capacity.sources import http
from vllm_capacity.sources.http import without_credentials

_LOGIN = re.compile(r"[^/@]*:[^/@]*@")
_GLANCE_SECONDS = 2.0
METRICS = "VLLM_METRICS"
"""The prefix of the environment variables with the credentials for servers' /metrics."""
METRICS_SETTINGS = ("user", "password", "token")


def checked_url(url: str, *, variables: str = "") -> str:
    """The URL, if it is http or https; InputError if it is not, or if it holds credentials.

    `variables`: the prefix of the environment variables to use for the credentials instead.
    """
    shown = without_credentials(url)
    try:
        parsed = httpx.URL(url)
        parsed.host.encode("idna")
    except (httpx.InvalidURL, UnicodeError) as error:
        why = f": {error}" if shown == url else ""  # the error quotes its input
        raise InputError(f"Cannot read {shown!r} as a URL{why}.") from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise InputError(f"Cannot read {shown!r} as a URL: not http:// or https:// and a host.")
    if parsed.port is not None and not 0 < parsed.port < 65536:
        raise InputError(f"Cannot read {shown!r} as a URL: there is no port {parsed.port}.")
    if parsed.userinfo:
        instead = f"set {variables}_USER and {variables}_PASSWORD" if variables else "leave it out"
        raise InputError(
            f"A password in the URL {shown} is seen by everyone on this machine; {instead} instead."
        )
    return url


def is_server(origin: str) -> bool:
    """Whether telemetry comes from an http(s) URL; False if it comes from files (a path or s3://).

    InputError for any other URL scheme, and for s3:// with credentials in it.
    """
    scheme = origin.partition("://")[0].lower() if "://" in origin else ""
    if scheme not in ("", "http", "https", "s3"):
        raise InputError(
            f"Cannot read from {without_credentials(origin)}: give http://, https://, s3:// or the "
            "path of a folder."
        )
    if scheme == "s3" and "@" in origin:
        raise InputError(
            f"Credentials for {without_credentials(origin)} come from AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY; leave them out of the URL."
        )
    if not scheme and _LOGIN.match(origin):
        raise InputError(
            f"Cannot read from {without_credentials(origin)}: give http:// or https://."
        )
    return scheme in ("http", "https")


def metrics_url(text: str) -> str:
    """The URL of a server's metrics; http:// and /metrics are added to a bare host:port."""
    url = text if "://" in text else f"http://{text}"
    parsed = httpx.URL(checked_url(url, variables=METRICS))
    return str(parsed.copy_with(path="/metrics")) if parsed.path == "/" else url


def read_settings(
    environment: Mapping[str, str],
    profile: Path | None,
    *,
    prefix: str = "PARSEABLE",
    names: Sequence[str] = ("url", "user", "password", "api_key"),
) -> dict[str, str]:
    """The settings in `names` from a profile; environment variables `PREFIX_NAME` override them.

    A profile is a TOML file that only its owner can read; InputError otherwise.
    """
    found = _read_profile(profile, names) if profile else {}
    for name in names:
        variable = f"{prefix}_{name.upper()}"
        if environment.get(variable):
            found[name] = secret(variable, environment[variable])
    return found


def _read_profile(path: Path, names: Sequence[str]) -> dict[str, str]:
    try:
        content = tomllib.loads(read_secret(path))
    except (tomllib.TOMLDecodeError, RecursionError):
        raise InputError(f"The profile {path} is not TOML: expected lines like user = …") from None
    unknown = sorted(set(content) - set(names))
    if unknown:
        raise InputError(
            f"The profile {path} has {', '.join(unknown)}; allowed are {', '.join(names)}."
        )
    for name, value in content.items():
        if not isinstance(value, str | int):
            raise InputError(f"The profile {path} must have text as {name}.")
    return {name: secret(f"{path}: {name}", str(value)) for name, value in content.items()}


def secret(name: str, value: str) -> str:
    """The value without surrounding space; if unusable, an InputError that does not show it.

    With a stray line break, sending would fail with an error that shows the whole secret.
    """
    bare = value.strip().strip("\ufeff")
    is_header = name.lower().endswith(("api_key", "token"))
    if not (is_sendable(bare) if is_header else bare.isprintable()):
        raise InputError(
            f"{name} contains a line break or another character that cannot be sent. Set it again."
        )
    return bare


class _Header(httpx.Auth):
    """Authentication by a header instead of user and password."""

    def __init__(self, name: str, value: str) -> None:
        self._name, self._value = name, value

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        request.headers[self._name] = self._value
        yield request


def auth_of(settings: Mapping[str, str]) -> httpx.Auth | None:
    """The credentials in the settings: api_key, token, or user and password; None if absent."""
    if settings.get("api_key"):
        return _Header("X-API-KEY", settings["api_key"])
    if settings.get("token"):
        return _Header("Authorization", f"Bearer {settings['token']}")
    user, password = settings.get("user"), settings.get("password")
    return httpx.BasicAuth(user, password) if user and password else None


def trusting(certificates: Path | None) -> ssl.SSLContext:
    """A TLS context that trusts these certificates (PEM), or the system's if None.

    InputError if the file cannot be read or holds no certificates.
    """
    try:
        return ssl.create_default_context(cafile=certificates)
    except ssl.SSLError:
        raise InputError(f"{certificates} has no certificates to trust: expected PEM.") from None
    except OSError as error:
        raise InputError(f"Cannot read {certificates}: {error.strerror}.") from None


@contextmanager
def client(settings: Mapping[str, str] | None = None, **how: Any) -> Iterator[httpx.Client]:  # noqa: ANN401
    """A client with the credentials in `settings`, if any; `how` is passed on to `http.client`."""
    with http.client(auth=auth_of(settings or {}), **how) as opened:
        yield opened


def is_prometheus(url: str) -> bool:
    """Whether Prometheus, or a server with its API, answers at the URL within 2 seconds."""
    try:
        with client(base_url=url, timeout=_GLANCE_SECONDS) as asking:
            answer = asking.get("/api/v1/status/buildinfo")
            return answer.status_code == 200 and "version" in answer.text
    except httpx.HTTPError:
        return False


_CAUSES = (
    ("certificate", "TLS: its certificate is not trusted"),
    ("SSL", "TLS: no TLS connection; is it plain http://?"),
    ("refused", "connection refused; is the server running, and on this port?"),
    ("Name or service", "no such host"),
    ("nodename", "no such host"),
    ("name resolution", "no such host"),
    ("Timeout", "no answer in time"),
    ("HTTP 404", "HTTP 404; is this its /metrics?"),
    ("HTTP 401", "HTTP 401; it requires credentials (VLLM_METRICS_TOKEN)"),
    ("HTTP 403", "HTTP 403; these credentials may not read it"),
)


def cause(error: str) -> str:
    """Why a server does not answer, in plain words; the error itself if the cause is not known."""
    return next((words for sign, words in _CAUSES if sign in error), error)
