"""Web addresses and addresses of object stores: which ones are read, and how they are shown."""

from __future__ import annotations

import re
import urllib.parse
import urllib.request
from pathlib import Path

from deit.core.errors import UserError
from deit.core.printable import printable

WEB = ("http", "https")
# Object stores that fsspec opens. Other schemes of it run commands, unpack archives or need passwords in the address.
STORES = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "hf", "memory")
_ADDRESS = re.compile(r"\w+://[^\s'\"<>]+")


def is_address(name: str) -> bool:
    """Returns True for a web address or a pipe command, False for a path."""
    return "://" in name or name.startswith("pipe:")


def scheme_of(address: str) -> str:
    """Returns the scheme in lower case: "https" of "https://host/a.tar", "pipe" of "pipe:cat a.tar"."""
    return address.partition(":")[0].lower()


def key_of(address: str) -> str:
    """Returns an address without user, query and fragment: what names a shard in caches and lists.

    Queries hold keys and dates of signatures, which change daily.
    """
    plain = address.partition("?")[0].partition("#")[0]
    scheme, found, rest = plain.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}{found}{host.rpartition('@')[2]}{slash}{path}" if found else plain


def named(name: str) -> str:
    """Returns a path unchanged, and an address without what may be a key, for records."""
    return key_of(name) if is_address(name) else name


def shown(address: str) -> str:
    """Returns an address for messages, without parts that may be a key or a password."""
    return printable(key_of(address), 300)


def without_secrets(text: object) -> str:
    """Returns a message of another library in one line, with its addresses as `shown` returns them."""
    return printable(_ADDRESS.sub(lambda found: shown(found.group()), " ".join(str(text).split())), 200)


def check_address(address: str) -> None:
    """Refuses addresses that are not read.

    Raises:
        UserError: The scheme is unknown, or the address is malformed.
    """
    if scheme_of(address) not in (*WEB, *STORES) or address.startswith("pipe:"):
        raise UserError(
            f"{shown(address)} cannot be opened: shards come from files, http, https and object stores "
            f"({', '.join(STORES[:-1])}). Copy it first."
        )
    try:
        parts = urllib.parse.urlsplit(address)
        _ = parts.port
    except ValueError as error:
        raise UserError(f"{shown(address)} is not an address ({error}). Correct it.") from error


def path_of(name: str) -> str:
    """Returns the path of a `file://` address; every other name unchanged.

    Raises:
        UserError: The address names another machine.
    """
    if not name.lower().startswith("file://"):
        return name
    parts = urllib.parse.urlsplit(name)
    if parts.netloc not in ("", "localhost"):
        raise UserError(f"{name} is on the machine {parts.netloc!r}. Copy it first, or write file:///path.")
    return urllib.request.url2pathname(parts.path)


def name_of(name: str) -> str:
    """Returns the name of the file at a path or an address."""
    return Path(named(name)).name
