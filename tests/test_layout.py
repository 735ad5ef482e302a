"""The rules of the layout: what may import what, where heavy libraries live, what files are called and weigh."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("data_pipeline", "models", "trainers", "benchmarks")  # each may import those before it
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).glob("*.py"))
HOME = {
    "deepspeed": {"trainers/engine.py", "trainers/ranks.py", "trainers/zero_patches.py"},
    "datasets": {"data_pipeline/stream.py"},
    "transformers": {"models/language.py"},
    "peft": {"models/language.py"},
}
TAKEN_NAMES = sys.stdlib_module_names | {
    "accelerate", "datasets", "deepspeed", "evaluate", "huggingface_hub", "peft", "safetensors", "tokenizers",
    "transformers",
}  # fmt: skip


def imported_names(path: Path) -> set[str]:
    """Return every absolute dotted name that a module imports, at the top or inside a function."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_down(path: Path) -> None:
    above = PACKAGES[PACKAGES.index(path.parent.name) + 1 :]
    wrong = {name for name in imported_names(path) if name.split(".")[0] in (*above, "tests")}
    assert not wrong, f"{name_of(path)} imports {sorted(wrong)} from above"


@pytest.mark.parametrize("path", [p for p in MODULES if p.parent.name == "models"], ids=name_of)
def test_networks_know_of_the_data_only_batches_variables_and_errors(path: Path) -> None:
    used = {name.split(".")[1] for name in imported_names(path) if name.startswith("data_pipeline.")}
    assert used <= {"batch", "variables", "errors"}


@pytest.mark.parametrize("library", sorted(HOME))
def test_a_heavy_library_has_one_home(library: str) -> None:
    users = {name_of(p) for p in MODULES for name in imported_names(p) if name.split(".")[0] == library}
    assert users <= HOME[library]


def test_init_files_hold_a_docstring_and_no_more() -> None:
    for package in PACKAGES:
        body = ast.parse((ROOT / package / "__init__.py").read_text()).body
        assert len(body) == 1 and isinstance(body[0], ast.Expr), f"{package}/__init__.py"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_says_its_job_in_its_first_line(path: Path) -> None:
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    assert docstring and docstring.splitlines()[0].endswith((".", ":")), name_of(path)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_module_can_be_taken_for_one_of_python_or_of_hugging_face_when_run_as_a_script(path: Path) -> None:
    # `evaluate` is the one exception: issue 2 and DESIGN.md name the file, and it only ever runs as trainers.evaluate.
    assert path.stem == "__init__" or path.stem not in TAKEN_NAMES - {"evaluate"}


def tracked_files() -> list[Path]:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).exists()]


def test_no_committed_file_is_over_one_megabyte() -> None:
    assert [name_of(p) for p in tracked_files() if p.stat().st_size > 2**20] == []


def test_the_top_level_is_the_one_of_the_design() -> None:
    expected = {
        "setup.py", "ds_configs", "models", "data_pipeline", "trainers", "launch.sh", "tests", "benchmarks",
        "README.md", "CHANGELOG.md", "NOTICE", "pyproject.toml", "constraints.txt", "docs", ".ci", ".gitignore",
    }  # fmt: skip
    assert {p.relative_to(ROOT).parts[0] for p in tracked_files()} <= expected


def test_no_file_is_unpickled() -> None:
    """A data folder or a checkpoint from a stranger must not run code."""
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.keyword) and node.arg in ("weights_only", "allow_pickle", "trust_remote_code"):
                value = getattr(node.value, "value", None)
                assert value is (node.arg == "weights_only"), f"{name_of(path)}:{node.value.lineno} {node.arg}={value}"
        assert not {n for n in imported_names(path) if n.split(".")[0] in ("pickle", "dill", "shelve")}, name_of(path)


def test_every_module_finds_its_neighbours_after_an_installation() -> None:
    """setup.py lists every package that the checkout holds, and the tables that a module reads beside itself."""
    text = (ROOT / "setup.py").read_text()
    for package in PACKAGES:
        assert f'"{package}"' in text
    suffixes = {p.suffix for p in tracked_files() if p.parent.name == "data_pipeline"} - {".py", ""}
    assert all(f"*{suffix}" in text for suffix in suffixes)


def test_bad_input_is_told_in_one_place() -> None:
    """Only training has its own: many ranks fail at once there, and one is to speak."""
    own = [name_of(p) for p in MODULES if re.search(r"\breturn 2$", p.read_text(), re.M)]
    assert own == ["data_pipeline/build.py", "data_pipeline/errors.py"]  # build: --check tells every complaint
