"""A folder in S3, or in a compatible store: `s3://bucket/prefix`.

Credentials, region and an endpoint other than AWS come from the environment or a profile, as for
every AWS tool; never from the URL. s3fs is the extra `s3`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from msgspec import Struct

from vllm_capacity.errors import CapacityError, InputError, SourceError

SCHEME = "s3://"


def is_s3(place: object) -> bool:
    """Whether a given place is an S3 URL."""
    return isinstance(place, str) and place.startswith(SCHEME)


class Bucket(Struct, frozen=True, dict=True):
    """A folder in S3.

    Failures raise SourceError, missing credentials or profiles InputError, missing files
    FileNotFoundError.
    """

    url: str

    @classmethod
    def at(cls, url: str) -> Bucket:
        """The folder at `s3://bucket/prefix`; InputError for any other URL or without s3fs."""
        bare = url.rstrip("/")
        bucket, _, prefix = bare.removeprefix(SCHEME).partition("/")
        if "@" in bucket:
            raise InputError(
                "Credentials for S3 come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; leave "
                "them out of the URL."
            )
        if not bucket or not all(prefix.split("/")):
            raise InputError(f"No window at {url!r}: expected s3://bucket/folder.")
        found = cls(bare)
        found._files  # noqa: B018  raises now if something is missing
        return found

    @property
    def name(self) -> str:
        """The last part of its URL."""
        return self.url.rpartition("/")[2]

    @property
    def has_bucket(self) -> bool:
        """Whether the bucket of its URL exists."""
        bucket = self.url.removeprefix(SCHEME).partition("/")[0]
        with _explained(f"look for the bucket {bucket}"):
            return bool(self._files.exists(bucket))

    def names(self, folder: str) -> dict[str, int]:
        """The direct contents of a subfolder: size in bytes by name; empty if it does not exist."""
        with _explained(f"list {self.url}/{folder}"):
            try:
                found = self._files.ls(f"{self.url}/{folder}", detail=True)
            except FileNotFoundError:
                return {}
        return {str(each["name"]).rpartition("/")[2]: int(each["size"] or 0) for each in found}

    def read(self, name: str) -> bytes:
        """The contents of one file."""
        with _explained(f"read {self.url}/{name}"):
            return bytes(self._files.cat_file(f"{self.url}/{name}"))

    def fetch(self, files: Mapping[str, Path]) -> None:
        """Download files to these paths, several at a time."""
        if files:
            with _explained(f"read {self.url}"):
                there = [f"{self.url}/{name}" for name in files]
                self._files.get(there, [str(path) for path in files.values()])

    def put(self, files: Mapping[str, Path]) -> None:
        """Upload files under these names, several at a time; each upload is atomic."""
        if files:
            with _explained(f"write {self.url}"):
                there = [f"{self.url}/{name}" for name in files]
                self._files.put([str(path) for path in files.values()], there)

    def remove(self, names: Iterable[str]) -> None:
        """Remove files."""
        if there := [f"{self.url}/{name}" for name in names]:
            with _explained(f"remove files in {self.url}"):
                self._files.rm(there)

    @cached_property
    def _files(self) -> Any:  # noqa: ANN401  s3fs has no types
        return opened_filesystem()


def opened_filesystem() -> Any:  # noqa: ANN401  s3fs has no types
    """S3 as a file system; raises InputError if s3fs is not installed."""
    try:
        import s3fs  # an extra: most installations read local folders
    except ImportError:
        raise InputError(
            "Reading s3:// needs s3fs. Install it with: pip install 'vllm-capacity[s3]'."
        ) from None
    from aiobotocore.session import AioSession  # type: ignore[import-untyped]

    # No caches: the store may change, and the environment may name another server next time.
    session = AioSession()
    session.register_component("data_loader", _api_descriptions())
    return s3fs.S3FileSystem(session=session, skip_instance_cache=True, use_listings_cache=False)


@cache
def _api_descriptions() -> object:
    """What botocore ships about the API of S3: parsing it is most of the cost of a new client."""
    from botocore.loaders import create_loader  # type: ignore[import-untyped]

    return create_loader()


def failed(what: str, error: Exception) -> CapacityError:
    """The error for a failed S3 operation; InputError if credentials or a profile are missing."""
    from botocore.exceptions import (  # type: ignore[import-untyped]
        NoCredentialsError,
        PartialCredentialsError,
        ProfileNotFound,
    )

    # ValueError: an endpoint that is not a URL.
    not_given = (NoCredentialsError, PartialCredentialsError, ProfileNotFound, ValueError)
    kind = InputError if isinstance(error, not_given) else SourceError
    return kind(
        f"Could not {what}: {str(error).rstrip('.')}. Credentials come from AWS_ACCESS_KEY_ID and "
        "AWS_SECRET_ACCESS_KEY, or from a profile (AWS_PROFILE); another server than AWS is named "
        "by AWS_ENDPOINT_URL."
    )


@contextmanager
def _explained(what: str) -> Iterator[None]:
    from botocore.exceptions import BotoCoreError

    try:
        yield
    except FileNotFoundError:
        raise
    except (OSError, ValueError, BotoCoreError) as error:
        raise failed(what, error) from error
