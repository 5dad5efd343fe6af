"""Reads parts of files in object stores, through fsspec."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import IO, Any, TypeVar

from deit.core.errors import MissingPackageError, UserError
from deit.data.streams.addresses import scheme_of, shown, without_secrets
from deit.data.streams.remote import CHANGED, HEAD_BYTES, Described
from deit.data.streams.retrying import PassingError

# Names under which fsspec's file systems tell the version of a file.
_VERSIONS = (
    "ETag",
    "etag",
    "md5Hash",
    "content_md5",
    "generation",
    "LastModified",
    "last_modified",
    "mtime",
    "created",
)
# The extra that opens a scheme, and the package that fsspec asks for.
_EXTRAS = {"s3": "s3", "s3a": "s3"}
# Errors that no second attempt mends, by their names: botocore defines some of them at run time.
_LASTING = ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound")

T = TypeVar("T")


class StoredFile:
    """A file in an object store. The store takes its keys from where its own tools do.

    Args:
        address: Such as s3://bucket/prefix/a.tar.
    """

    def __init__(self, address: str) -> None:
        self.address = address

    def describe(self) -> Described:
        """Asks for size and version."""
        found = _asked(self.address, lambda store, path: store.info(path))
        if found.get("type") == "directory" or found.get("size") is None:
            raise FileNotFoundError(f"There is no file {shown(self.address)}. Check the address.")
        versions = {name: str(found[name]) for name in _VERSIONS if found.get(name)}
        version = hashlib.sha256(json.dumps(versions).encode()).hexdigest()[:32] if versions else ""
        size = int(found["size"])
        head = _asked(self.address, lambda store, path: store.cat_file(path, start=0, end=min(HEAD_BYTES, size)))
        return Described(size=size, version=version, head=bytes(head), has_parts=True)

    def append(self, start: int, stop: int, sink: IO[bytes], known: Described) -> None:
        """Appends the bytes from `start` to `stop`; see `WebFile.append`."""
        content = _asked(self.address, lambda store, path: store.cat_file(path, start=start, end=stop))
        if len(content) > stop - start:
            raise UserError(CHANGED.format(shown(self.address)))
        sink.write(content)
        if len(content) < stop - start:
            raise PassingError("it sent fewer bytes than requested")


def listed(pattern: str) -> list[str]:
    """Returns the sorted addresses that match a pattern with *, ? or [.

    Raises:
        FileNotFoundError: There are none.
    """
    found = _asked(pattern, lambda store, path: [store.unstrip_protocol(each) for each in sorted(store.glob(path))])
    if not found:
        raise FileNotFoundError(f"There is nothing at {shown(pattern)}. Check the address.")
    return list(found)


def _asked(address: str, ask: Callable[[Any, str], T]) -> T:
    """Opens the file system of an address and asks it. fsspec keeps one for each process and thread."""
    import fsspec

    scheme = scheme_of(address)
    try:
        store, path = fsspec.core.url_to_fs(address, use_listings_cache=False)
        return ask(store, path)
    except ImportError as error:
        extra = _EXTRAS.get(scheme)
        how = f'pip install "deit[{extra}]"' if extra else without_secrets(error)
        raise MissingPackageError(f"Reading {scheme}:// needs another package: {how}.", name=scheme) from error
    except FileNotFoundError:
        raise FileNotFoundError(f"There is no {shown(address)}. Check the address.") from None
    except PermissionError as error:
        raise PermissionError(f"The store refuses {shown(address)} ({without_secrets(error)}).") from None
    except UserError:
        raise
    except Exception as error:  # each store raises errors of its own library
        name = type(error).__name__
        if name in _LASTING or isinstance(error, ValueError):
            raise UserError(f"{shown(address)} cannot be read ({name}: {without_secrets(error)}).") from None
        raise PassingError(f"{name}: {error}") from error
