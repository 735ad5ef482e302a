"""Say everything about a run in one frozen RunConfig, read it from JSON and change it with `--set section.field=value`.

Imports neither torch nor deepspeed, so that arguments can be checked in a fraction of a second.
"""

from __future__ import annotations

import difflib
import json
import math
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

from data_pipeline.errors import InputError
from models.configs import ModelConfig, require
from trainers import version

PARTS = ("graph_vae", "cnn", "llm", "unified")
LOSS_WEIGHTS: Mapping[str, float] = types.MappingProxyType(
    {
        "habitability/bce": 1.0,
        "habitability/text_bce": 0.25,  # judged from the text alone, which the fusion could do without
        "graph/edges": 0.1,
        "graph/kl": 0.1,
        "graph/recon": 0.1,
        "climate/recon": 0.1,
        "spectrum/recon": 0.1,
        "physics/energy_balance": 0.2,
        "physics/hydrostatic": 0.2,
        "consistency/info_nce": 0.15,
        "consistency/cross_recon": 0.15,
        "text/ce": 0.1,
    }
)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is read, and how much of it a step takes."""

    dir: str = ""  # folder that data_pipeline.build wrote: on a disk, an fsspec URL or the name of a hub data set
    parts: tuple[str, ...] = ()  # modality=folder: modalities that are stored apart, joined by sample id
    missing: Literal["error", "skip", "mask"] = "error"  # what to do about a sample that a part does not hold
    graphs: str = ""  # folder of NPZ graphs; when given, graph_vae trains on these instead of on `dir`
    samples_per_rank: int = 8  # of one micro-batch
    max_tokens: int = 208
    text_mode: Literal["mixed", "full", "observable"] = "mixed"
    seed: int = 0  # of the order of samples and of what is hidden
    verify: bool = True  # compare every shard's checksum before the first step
    damaged_shards: Literal["refuse", "skip"] = "refuse"
    max_bad_samples: int = 0  # that cannot be read and are left out, with their ids on stderr, before a rank gives up
    workers: int = 1  # threads a rank that make batches
    shuffle_shards: int = 4  # shards that are mixed with each other
    buckets: Literal["none", "nodes", "tokens"] = "none"  # batches of samples of about one size
    bucket_samples: int = 64  # samples of about one size in a row; a multiple of samples_per_rank x ranks is best

    def __post_init__(self) -> None:
        for name in ("workers", "shuffle_shards", "bucket_samples"):
            require(getattr(self, name) >= 1, f"data.{name}", getattr(self, name), "must be at least 1")
        require(self.max_bad_samples >= 0, "data.max_bad_samples", self.max_bad_samples, "must be 0 or more")
        require(self.samples_per_rank >= 1, "data.samples_per_rank", self.samples_per_rank, "must be at least 1")
        require(self.max_tokens >= 16, "data.max_tokens", self.max_tokens, "must be at least 16")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW with warm-up and cosine decay. A part's learning rate is `lr` times its factor."""

    lr: float = 1e-3
    graph_lr_factor: float = 1.0
    climate_lr_factor: float = 1.0
    spectrum_lr_factor: float = 1.0
    language_lr_factor: float = 1.0  # LoRA adapters and the modality prefix
    fusion_lr_factor: float = 1.0
    lr_warmup_steps: int = 20
    final_lr_share: float = 0.05  # of `lr`, reached at train.steps
    weight_decay: float = 0.01  # of matrices only
    beta1: float = 0.9
    beta2: float = 0.95
    clip_norm: float = 1.0  # global gradient norm

    def __post_init__(self) -> None:
        require(self.lr > 0, "optim.lr", self.lr, "must be above 0")
        require(self.lr_warmup_steps >= 0, "optim.lr_warmup_steps", self.lr_warmup_steps, "must be 0 or more")
        require(0 <= self.final_lr_share <= 1, "optim.final_lr_share", self.final_lr_share, "must lie in [0, 1]")
        require(self.weight_decay >= 0, "optim.weight_decay", self.weight_decay, "must be 0 or more")
        require(self.clip_norm > 0, "optim.clip_norm", self.clip_norm, "must be above 0")
        for name in ("beta1", "beta2"):
            require(0 <= getattr(self, name) < 1, f"optim.{name}", getattr(self, name), "must lie in [0, 1)")
        for f in fields(self):
            if f.name.endswith("_lr_factor"):
                require(getattr(self, f.name) >= 0, f"optim.{f.name}", getattr(self, f.name), "must be 0 or more")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long, how often and by which engine."""

    part: Literal["graph_vae", "cnn", "llm", "unified"] = "unified"
    steps: int = 200
    accumulation: int = 1  # micro-batches a step
    eval_every_steps: int = 50
    eval_batches: int = 8  # of held_out, a rank; 0: all
    save_every_steps: int = 100
    keep_checkpoints: int = 2
    deadline_s: float = 0.0  # save and stop after this many seconds of training; 0: none
    engine: Literal["deepspeed", "local"] = "deepspeed"
    ds_config: str = ""  # a DeepSpeed JSON; "": ds_configs/zero3_cpu.json without a GPU, ds_configs/zero3.json with one
    process_group_timeout_s: float = 1800.0
    seed: int = 0  # of the weights and of what is random in a step

    def __post_init__(self) -> None:
        for name in ("steps", "accumulation", "eval_every_steps", "save_every_steps", "keep_checkpoints"):
            require(getattr(self, name) >= 1, f"train.{name}", getattr(self, name), "must be at least 1")
        require(self.eval_batches >= 0, "train.eval_batches", self.eval_batches, "must be 0 (all) or more")
        require(self.deadline_s >= 0, "train.deadline_s", self.deadline_s, "must be 0 (none) or more")
        timeout = self.process_group_timeout_s
        require(timeout > 0, "train.process_group_timeout_s", timeout, "must be above 0")


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """What is written for people to look at."""

    tensorboard: bool = True
    scalars_every_steps: int = 1
    figures: bool = True  # at every evaluation
    progress: bool = True

    def __post_init__(self) -> None:
        every = self.scalars_every_steps
        require(every >= 1, "log.scalars_every_steps", every, "must be at least 1")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides a run. `loss_weights` is keyed by term, as objectives name them."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    loss_weights: Mapping[str, float] = field(default_factory=lambda: dict(LOSS_WEIGHTS))
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    log: LogConfig = field(default_factory=LogConfig)

    def __post_init__(self) -> None:
        """Refuse unknown or negative loss weights; fill in the defaults of those not named."""
        for name, weight in self.loss_weights.items():
            known = nearest(name, LOSS_WEIGHTS)
            require(name in LOSS_WEIGHTS, f"loss_weights.{name}", weight, f"no such term{known}")
            require(weight >= 0, f"loss_weights.{name}", weight, "must be 0 or more")
        object.__setattr__(self, "loss_weights", {**LOSS_WEIGHTS, **self.loss_weights})
        if self.data.graphs and self.train.part != "graph_vae":
            raise InputError(
                f"data.graphs={self.data.graphs!r}: only graph_vae trains on graphs alone, not {self.train.part}; "
                "leave it out or train graph_vae"
            )


def nearest(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean X?" for the known name most like this one, or the list of known names."""
    known = list(known)
    match = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {match[0]}?" if match else f"; choose from {', '.join(known)}"


def with_settings(config: RunConfig, settings: Iterable[str]) -> RunConfig:
    """Return the config with `section.field=value` settings applied together, each typed by its field.

    Raises:
        InputError: A setting has no "=", names no field (the nearest is shown), or its value has a wrong type or range.
    """
    table = to_dict(config)
    for setting in settings:
        path, equals, text = setting.partition("=")
        if not equals:
            raise InputError(f"--set {setting!r}: expected section.field=value")
        _set(table, RunConfig, path, path.split("."), text)
    return from_dict(table)


def _set(table: dict[str, Any], kind: Any, path: str, names: list[str], text: str) -> None:
    hints = typing.get_type_hints(kind)
    name, rest = names[0], names[1:]
    if name not in hints:
        raise InputError(f"--set {path}: no field {name!r} in {kind.__name__}{nearest(name, hints)}")
    hint = hints[name]
    if is_dataclass(hint):
        if not rest:
            inner = ", ".join(f"{path}.{f.name}" for f in fields(hint))  # type: ignore[arg-type]
            raise InputError(f"--set {path}={text}: {path} is a section; set one of {inner}")
        _set(table[name], hint, path, rest, text)
    elif typing.get_origin(hint) is Mapping:
        key = ".".join(rest)
        require(key in LOSS_WEIGHTS, f"--set {path}", text, f"no term {key!r}{nearest(key, LOSS_WEIGHTS)}")
        table[name][key] = _typed(path, float, text)
    elif rest:
        raise InputError(f"--set {path}={text}: {name} is a value, not a section")
    else:
        table[name] = _typed(path, hint, text)


def _typed(path: str, hint: Any, text: str) -> Any:
    """Read text as the type of a field: bool, int, float, str, a Literal of strings, or a tuple of strings."""
    if hint is bool:
        if text.lower() not in ("true", "false"):
            raise InputError(f"--set {path}={text}: expected true or false")
        return text.lower() == "true"
    if hint in (int, float):
        try:
            return hint(text)
        except ValueError:
            raise InputError(f"--set {path}={text}: expected {hint.__name__}") from None
    if typing.get_origin(hint) is tuple:
        return [part for part in text.split(",") if part]
    return text


def to_dict(config: RunConfig) -> dict[str, Any]:
    """Return the config as JSON-able dictionaries."""
    table: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    return table


def from_dict(table: Mapping[str, Any]) -> RunConfig:
    """Read what `to_dict` wrote.

    Raises:
        InputError: A field is unknown, of the wrong type or out of range.
    """
    config: RunConfig = _build(RunConfig, table, "config")
    return config


def _build(kind: Any, table: Any, path: str) -> Any:
    if not isinstance(table, Mapping):
        raise InputError(f"{path}={table!r}: expected a table of fields")
    hints = typing.get_type_hints(kind)
    values = {}
    for name, value in table.items():
        if name not in hints:
            raise InputError(f"{path}.{name}: no such field{nearest(name, hints)}")
        values[name] = _value(hints[name], value, f"{path}.{name}")
    return kind(**values)


def _value(hint: Any, value: Any, path: str) -> Any:
    if is_dataclass(hint):
        return _build(hint, value, path)
    origin = typing.get_origin(hint)
    expected: Any = {tuple: list, Mapping: Mapping, Literal: str}.get(origin, hint)
    if expected is float and type(value) is int:
        value = float(value)
    if not isinstance(value, expected) or (expected is int and isinstance(value, bool)):
        raise InputError(f"{path}={value!r}: expected {getattr(expected, '__name__', expected)}")
    if isinstance(value, float):
        require(math.isfinite(value), path, value, "must be a finite number")
    if origin is Literal:
        require(value in typing.get_args(hint), path, value, f"choose from {', '.join(typing.get_args(hint))}")
    if origin is Mapping:
        return {name: _value(typing.get_args(hint)[1], item, f"{path}.{name}") for name, item in value.items()}
    return tuple(value) if origin is tuple else value


def read(path: Path) -> RunConfig:
    """Read the config.json of a run.

    Raises:
        InputError: The file is missing, is not JSON, or holds what is no configuration of this version.
    """
    try:
        table = json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; give the folder of a run that has started") from None
    except ValueError as error:  # not JSON, or not UTF-8
        raise InputError(f"{path}: not JSON ({error}); it is written by trainers.train") from None
    writer = {version.KEY: table.pop(version.KEY)} if isinstance(table, dict) and version.KEY in table else {}
    return of_run(path, table, writer)


def of_run(path: Path, table: Any, written: Mapping[str, Any]) -> RunConfig:
    """Read a configuration that a run wrote.

    Args:
        path: The file in which it stands, in the folder of the run or one below.
        table: What `to_dict` wrote.
        written: Holds the version that wrote it, if that version knew how.

    Raises:
        InputError: It is no configuration of this version; says so if another one wrote it.
    """
    try:
        config: RunConfig = _build(RunConfig, table, "config")
        return config
    except InputError as error:
        if not isinstance(table, Mapping):
            raise InputError(f"{path}: {error}; it is damaged, start a new run") from None
        run = path.parent.parent if path.parent.name == "model" else path.parent
        train = table.get("train")
        part = train.get("part") if isinstance(train, Mapping) else None
        # The list of today's fields helps with a slip of the pen, not with a field that went.
        problem = str(error).partition("; choose from")[0] if version.by_another(written) else str(error)
        raise version.refusal(run, written, f"{path}: {problem}", part or "PART") from None


def write(config: RunConfig, path: Path) -> None:
    """Write the config.json of a run."""
    path.write_text(json.dumps({version.KEY: version.this_version(), **to_dict(config)}, indent=2) + "\n")


def differences(a: Any, b: Any, path: str = "") -> list[str]:
    """Return "field: value != value" for each leaf in which two configs (or their dictionaries) differ."""
    if is_dataclass(a) and is_dataclass(b):
        a, b = asdict(a), asdict(b)  # type: ignore[arg-type]
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        names = sorted(set(a) | set(b))
        return [d for n in names for d in differences(a.get(n), b.get(n), f"{path}.{n}" if path else n)]
    a, b = (list(v) if isinstance(v, tuple) else v for v in (a, b))
    return [] if a == b else [f"{path}: {a!r} != {b!r}"]
