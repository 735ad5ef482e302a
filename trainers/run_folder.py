"""Tell what a run folder holds: whether it can be started in, and which of its checkpoints is the newest whole one.

Imports no torch, so that a mistake is found before ranks start.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from data_pipeline.errors import InputError

FORMAT = 1
MANIFEST, LATEST = "manifest.json", "latest.json"


def open_run(run: Path, resume: bool) -> bool:
    """Tell whether a run goes on, after checking its folder.

    Raises:
        InputError: The folder holds something and --resume is not given, or holds no run to go on with, or cannot be
            written to.
    """
    above = next(p for p in (run, *run.absolute().parents) if os.path.exists(p))  # False for a name that is too long
    if not above.is_dir():
        raise InputError(f"--out {run}: {'a file' if above == run else f'{above} is a file'}; give a folder")
    if not os.access(above, os.W_OK):
        raise InputError(f"--out {run}: {above} cannot be written to; choose another folder")
    if above != run or not any(run.iterdir()):
        return False
    if not resume:
        raise InputError(f"--out {run}: not empty; use --resume to go on with the run in it, or choose another folder")
    if not (run / "config.json").is_file():
        raise InputError(f"--out {run}: not empty, and no run of ours (no config.json); choose another folder")
    return bool(tags(run / "checkpoints"))


def tags(folder: Path) -> list[str]:
    """Return the tags of published checkpoints, newest first."""
    return sorted((p.name for p in folder.glob("step_*") if p.is_dir()), reverse=True)


def newest(run: Path) -> tuple[Path | None, list[str]]:
    """Return the newest whole checkpoint of a run, and what is wrong with each newer one."""
    skipped = []
    for tag in tags(run / "checkpoints"):
        folder = run / "checkpoints" / tag
        if problem := damage(folder):
            skipped.append(f"{folder}: {problem}")
        else:
            return folder, skipped
    return None, skipped


def damage(folder: Path) -> str:
    """Say what is wrong with a checkpoint; nothing: it is whole."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        for name, expected in manifest["files"].items():
            size = (folder / name).stat().st_size
            if size != expected["bytes"]:
                return f"{name} has {size} bytes, the manifest says {expected['bytes']}"
            if sha256_of(folder / name) != expected["sha256"]:
                return f"{name} does not have the checksum of the manifest"
        if manifest["format"] != FORMAT:
            return f"format {manifest['format']}, this version reads {FORMAT}"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def sha256_of(path: Path) -> str:
    """Return the checksum of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
