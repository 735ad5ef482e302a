"""Read the files of a data folder wherever it is: on a disk, at an fsspec URL or on the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from data_pipeline.errors import InputError

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def remote_url(data: str | Path) -> str | None:
    """Return the URL of a data folder that is not on a disk here; None for one that is, or that should be.

    A URL is whatever fsspec reads (s3://, https://, memory://, hf://datasets/owner/name). `owner/name` is a data set on
    the hub when neither it nor `owner` is a folder here.
    """
    text = str(data)
    if "://" in text:
        return text.rstrip("/")
    here = not isinstance(data, str) or Path(text).exists() or Path(text).parent.is_dir()
    return None if here or not _HUB_NAME.fullmatch(text) else f"hf://datasets/{text}"


def path_of(data: str | Path, name: str) -> str:
    """Return the path or URL of a file of a data folder."""
    url = remote_url(data)
    return f"{url}/{name}" if url else str(Path(data) / name)


def read_bytes(url: str, name: str) -> bytes:
    """Return the content of a file of a remote folder.

    Raises:
        InputError: There is no such file, or no way to it.
    """
    content: bytes = _ask(url, name, "cat_file")
    return content


def size_of(url: str, name: str) -> int | None:
    """Return the size of a file of a remote folder; None where the server does not tell.

    Raises:
        InputError: There is no such file, or no way to it.
    """
    size: int | None = _ask(url, name, "size")
    return size


def open_file(url: str, name: str) -> Any:
    """Return a file of a remote folder, opened to read some of its bytes.

    Raises:
        InputError: There is no such file, or no way to it.
    """
    return _ask(url, name, "open")


def _ask(url: str, name: str, method: str) -> Any:
    import fsspec

    try:
        files, root = fsspec.core.url_to_fs(url)
        return getattr(files, method)(f"{root.rstrip('/')}/{name}")
    except Exception as error:  # each file system and its client library raise their own
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise InputError(
            f"data={url}: {name} cannot be read ({reason}); check the name and the network, or give a folder on a disk"
        ) from error
