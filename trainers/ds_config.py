"""Read a DeepSpeed JSON, refuse what DeepSpeed would silently ignore, and add what RunConfig decides."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_pipeline.errors import InputError
from trainers.config import RunConfig, nearest

FOLDER = Path(__file__).resolve().parent.parent / "ds_configs"

# Written from RunConfig; a second copy in the JSON could only disagree.
OURS = {
    "train_batch_size": "data.samples_per_rank and train.accumulation",
    "train_micro_batch_size_per_gpu": "data.samples_per_rank",
    "gradient_accumulation_steps": "train.accumulation",
    "gradient_clipping": "optim.clip_norm",
    "optimizer": "optim.lr, optim.beta1, optim.weight_decay",
    "scheduler": "optim.lr_warmup_steps and optim.final_lr_share",
    "bf16": "model.language.dtype",
    "fp16": "model.language.dtype",
    "torch_autocast": "model.language.dtype",
    "tensorboard": "log.tensorboard",
}
_OFFLOAD_PARAM = ("device", "nvme_path", "buffer_count", "buffer_size", "max_in_cpu", "pin_memory")
_OFFLOAD_OPTIMIZER = (
    "device",
    "nvme_path",
    "buffer_count",
    "pin_memory",
    "pipeline_read",
    "pipeline_write",
    "fast_init",
    "ratio",
)
# deepspeed 0.19.8: runtime/config.py (top level), runtime/zero/config.py, runtime/zero/offload_config.py.
KNOWN: dict[str, Any] = {
    "steps_per_print": None,
    "wall_clock_breakdown": None,
    "memory_breakdown": None,
    "dump_state": None,
    "prescale_gradients": None,
    "gradient_predivide_factor": None,
    "communication_data_type": None,
    "zero_allow_untested_optimizer": None,
    "zero_force_ds_cpu_optimizer": None,
    "zero_optimization": {
        "stage": None,
        "contiguous_gradients": None,
        "reduce_scatter": None,
        "reduce_bucket_size": None,
        "allgather_partitions": None,
        "allgather_bucket_size": None,
        "overlap_comm": None,
        "sub_group_size": None,
        "stage3_prefetch_bucket_size": None,
        "stage3_param_persistence_threshold": None,
        "stage3_model_persistence_threshold": None,
        "stage3_max_live_parameters": None,
        "stage3_max_reuse_distance": None,
        "stage3_module_granularity_threshold": None,
        "stage3_gather_16bit_weights_on_model_save": None,
        "stage3_allgather_sequential": None,
        "round_robin_gradients": None,
        "zero_hpz_partition_size": None,
        "zero_quantized_weights": None,
        "zero_quantized_nontrainable_weights": None,
        "zero_quantized_gradients": None,
        "offload_param": dict.fromkeys(_OFFLOAD_PARAM),
        "offload_optimizer": dict.fromkeys(_OFFLOAD_OPTIMIZER),
    },
    "comms_logger": dict.fromkeys(("enabled", "verbose", "prof_all", "debug", "prof_ops")),
    "flops_profiler": dict.fromkeys(
        ("enabled", "profile_step", "module_depth", "top_modules", "detailed", "output_file")
    ),
}


def path_of(config: RunConfig, has_gpu: bool) -> Path:
    """Return the DeepSpeed JSON of a run: the one that it names, else the one for this kind of machine."""
    return (
        Path(config.train.ds_config)
        if config.train.ds_config
        else FOLDER / ("zero3.json" if has_gpu else "zero3_cpu.json")
    )


def read(path: Path) -> dict[str, Any]:
    """Return a DeepSpeed JSON in which every key is known and every value stated.

    Raises:
        InputError: The file is missing or not JSON, a key is misspelt (the nearest is shown) or belongs to RunConfig, a
            value is "auto", zero_optimization.stage is not 3, or a prefetch bucket is asked for that DeepSpeed ignores.
    """
    try:
        table = json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"train.ds_config={path}: no such file; ds_configs/ holds {_shipped()}") from None
    except OSError as error:
        raise InputError(f"train.ds_config={path}: {error.strerror}; ds_configs/ holds {_shipped()}") from None
    except ValueError as error:  # not JSON, or not UTF-8
        raise InputError(f"train.ds_config={path}: not JSON ({error})") from None
    if not isinstance(table, dict):
        raise InputError(f"train.ds_config={path}: not a table of settings; ds_configs/ holds {_shipped()}")
    _check(table, KNOWN, path.name)
    stage = table.get("zero_optimization", {}).get("stage")
    if stage != 3:
        raise InputError(f"{path.name}: zero_optimization.stage={stage!r}: checkpoints are written from ZeRO-3; set 3")
    zero = table["zero_optimization"]
    ahead = zero.get("stage3_prefetch_bucket_size")
    if zero.get("stage3_allgather_sequential", False) and ahead != 1:
        raise InputError(
            f"{path.name}: stage3_prefetch_bucket_size={ahead!r}: with stage3_allgather_sequential DeepSpeed fetches "
            "one parameter ahead whatever is asked; set it to 1, or leave out stage3_allgather_sequential"
        )
    return dict(table)


def _check(table: Mapping[str, Any], known: Mapping[str, Any], path: str) -> None:
    for key, value in table.items():
        if known is KNOWN and key in OURS:
            raise InputError(f"{path}: {key} is written from RunConfig; remove it and use --set {OURS[key]}")
        if key not in known:
            raise InputError(f"{path}: DeepSpeed knows no key {key!r}{nearest(key, known)}")
        if value == "auto":
            raise InputError(f'{path}: {key}="auto" works in the Hugging Face Trainer only; state a value')
        if isinstance(known[key], Mapping):
            if not isinstance(value, Mapping):
                raise InputError(f"{path}: {key}={value!r}: expected a table")
            _check(value, known[key], f"{path}: {key}")


def complete(table: Mapping[str, Any], config: RunConfig, world: int) -> dict[str, Any]:
    """Return the JSON with batch size, accumulation and clipping from RunConfig written in."""
    return {
        **table,
        "train_micro_batch_size_per_gpu": config.data.samples_per_rank,
        "gradient_accumulation_steps": config.train.accumulation,
        "train_batch_size": config.data.samples_per_rank * config.train.accumulation * world,
        "gradient_clipping": config.optim.clip_norm,
        "bf16": {"enabled": False},
        "fp16": {"enabled": False},
        # It would wait for the device twice a step, to say how fast it is.
        "timers": {"throughput": {"enabled": False}},
    }


def offloads_optimizer(table: Mapping[str, Any]) -> bool:
    """Tell whether Adam runs on the CPU while the networks run elsewhere."""
    return bool(table["zero_optimization"].get("offload_optimizer", {}).get("device", "none") != "none")


def moves_parameters(table: Mapping[str, Any]) -> bool:
    """Tell whether parameters are to lie off the GPU, twice or quantised: then the frozen ones are DeepSpeed's too."""
    zero = table["zero_optimization"]
    offloads = zero.get("offload_param", {}).get("device", "none") != "none"
    quantised = zero.get("zero_quantized_weights", False) or zero.get("zero_quantized_nontrainable_weights", False)
    return bool(offloads or quantised or zero.get("zero_hpz_partition_size", 1) > 1)


def _shipped() -> str:
    return ", ".join(sorted(p.name for p in FOLDER.glob("*.json")))
