"""The one exception for what a user or a file can get wrong, and the one place where entry points tell it."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from typing import ParamSpec

P = ParamSpec("P")


class InputError(ValueError):
    """Bad input. The message names the field, the value and the way out; entry points print it and exit with 2."""


def refused(error: OSError) -> str:
    """Return what to tell about a file or folder that the system refuses."""
    return f"{error.filename}: {error.strerror}; give another file or folder"


def one_line(main: Callable[P, int]) -> Callable[P, int]:
    """Make bad input one line on stderr and exit code 2 of an entry point.

    A file or folder that the system refuses (no permission, a full disk, a name that is too long) counts as bad input.
    A reader of stdout that went away (`| head`) ends the program in silence.
    """

    @functools.wraps(main)
    def told(*args: P.args, **kwargs: P.kwargs) -> int:
        try:
            return main(*args, **kwargs)
        except InputError as error:
            problem = str(error)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it flushes
            return 1
        except OSError as error:
            if error.filename is None:
                raise
            problem = refused(error)
        print(f"error: {problem}", file=sys.stderr)
        return 2

    return told
