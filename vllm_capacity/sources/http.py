"""Asking a server over HTTP: its accidents as our errors, and which are worth asking again."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import httpx
import msgspec
import tenacity

from vllm_capacity.errors import SourceError

_ATTEMPTS = 4
_CREDENTIALS = re.compile(r"^([a-zA-Z][\w+.-]*://)?.*@", re.DOTALL)
# What a server says when it, or what stands before it, is not ready.
BUSY = (429, 502, 503, 504)
# For questions that are asked once: a kept connection may be closed just as it is used again, which
# would look like a failure of the server.
NO_KEEPALIVE = httpx.Limits(max_keepalive_connections=0)
_Answer = TypeVar("_Answer")


class TransientError(SourceError):
    """A failure that may be gone when asked again."""


def with_retries(ask: Callable[[], _Answer], pause: Callable[[float], None]) -> _Answer:
    """The answer, asked for up to four times; only for questions that change nothing."""
    attempts = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(TransientError),
        stop=tenacity.stop_after_attempt(_ATTEMPTS),
        wait=tenacity.wait_exponential(multiplier=0.5, max=10),
        sleep=pause,
        reraise=True,
    )
    return attempts(ask)


def without_credentials(url: str) -> str:
    """The URL as it may be shown: without what stands before an @, even where it is no URL."""
    return _CREDENTIALS.sub(r"\1", url)


def decoded(content: bytes, shape: type[_Answer], *, at: str, dialect: str) -> _Answer:
    """The JSON of an answer, in the shape that its dialect has; SourceError where it is another.

    Keys that the shape does not name are left out.
    """
    try:
        return msgspec.json.decode(content, type=shape)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise SourceError(
            f"{at} does not answer as {dialect} does: {error}. Is it {dialect}, and is the URL "
            "its root?"
        ) from None


def shown(url: str | httpx.URL) -> str:
    """A URL as a message may show it: without user, password, query and fragment."""
    bare = httpx.URL(url).copy_with(userinfo=b"", query=None, fragment=None)
    return str(bare).rstrip("/")


def address(client: httpx.Client) -> str:
    """Where a client's server is, for messages and notes: without credentials."""
    return shown(client.base_url)


@contextmanager
def transport_errors(at: str) -> Iterator[None]:
    """Turns what happens on the wire into an error that says what to look at.

    `TransientError` where asking again may help, which it does not where the time was up.
    """
    try:
        yield
    except httpx.ConnectTimeout as error:
        raise TransientError(f"Nothing answers at {at} in time. Is the URL right?") from error
    except httpx.TimeoutException as error:
        raise SourceError(f"{at} did not answer in time. Ask for a shorter range.") from error
    except httpx.RemoteProtocolError as error:
        raise TransientError(
            f"{at} cut its answer short ({error}): the query failed midway, or the server "
            "stopped. See its log."
        ) from error
    except httpx.HTTPError as error:
        raise TransientError(
            f"Nothing usable answers at {at} ({error}). Is it running, and is the URL right?"
        ) from error
