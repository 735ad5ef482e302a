"""Bad input of any entry point: one line on stderr, exit code 2."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from data_pipeline.errors import InputError, one_line


def test_bad_input_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    @one_line
    def main(number: int) -> int:
        if number < 1:
            raise InputError(f"--count {number}: must be at least 1")
        return 0

    assert main(1) == 0 and capsys.readouterr().err == ""
    assert main(0) == 2 and capsys.readouterr().err == "error: --count 0: must be at least 1\n"


def test_a_file_that_the_system_refuses_is_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    @one_line
    def main(path: Path) -> int:
        path.write_text("")
        return 0

    (tmp_path / "file").write_text("")
    assert main(tmp_path / "file" / "below") == 2
    told = capsys.readouterr().err
    assert told == f"error: {tmp_path}/file/below: Not a directory; give another file or folder\n"
    assert main(tmp_path / ("x" * 300)) == 2 and "File name too long" in capsys.readouterr().err


def test_an_error_of_ours_keeps_its_traceback() -> None:
    @one_line
    def main(error: Exception) -> int:
        raise error

    for error in (ValueError("a bug"), OSError("no file in it")):
        with pytest.raises(type(error)):
            main(error)


def test_a_reader_that_goes_away_ends_the_program_in_silence() -> None:
    code = (
        "import sys\nfrom data_pipeline.errors import one_line\n"
        "@one_line\ndef main():\n    for n in range(100_000):\n        print(n)\n    return 0\nsys.exit(main())"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None and child.stderr is not None
        assert child.stdout.readline() == "0\n"
        child.stdout.close()
        assert child.stderr.read() == "" and child.wait() == 1
