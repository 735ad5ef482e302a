"""Say which version of Exobiome wrote a run, and what to do with a run of another one.

Imports no torch, so that a mistake is found before ranks start.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from data_pipeline.errors import InputError

KEY = "written_by"  # in config.json, model.json and the manifest of a checkpoint
_ROOT = Path(__file__).resolve().parent.parent
_UNKNOWN = "an older version of Exobiome (which did not write down its commit)"


@cache
def this_version() -> str:
    """Return the release and, in a checkout that git can read, the commit with its date."""
    try:
        release = f"Exobiome {metadata.version('exobiome')}"
    except metadata.PackageNotFoundError:  # a checkout on the path that was never installed
        release = "Exobiome"
    commit = _commit() if (_ROOT / ".git").exists() else ""
    return f"{release}, commit {commit}" if commit else release


def _commit() -> str:
    command = ["git", "-C", str(_ROOT), "log", "-1", "--format=%h of %cs"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def by_another(table: Mapping[str, Any]) -> str:
    """Return "; it was written by X and this is Y" for a table that another version wrote, else nothing."""
    writer = table.get(KEY, _UNKNOWN)
    return "" if writer == this_version() else f"; it was written by {writer}, and this is {this_version()}"


def refusal(run: Path, table: Mapping[str, Any], problem: str, part: str = "PART") -> InputError:
    """Return the error for a run that cannot be read, which names its version where that is another one.

    Args:
        run: Its folder.
        table: What holds KEY, if the version that wrote the run knew it.
        problem: What is wrong, beginning with the file.
        part: What it trained.
    """
    if not (other := by_another(table)):
        return InputError(problem)
    return InputError(
        f"{problem}{other}. Train again (./launch.sh train {part} --init-from {run} --out NEW starts from those of its "
        "weights that fit), or read it with the version that wrote it"
    )
