"""Foretell the memory of a run. `./launch.sh estimate --preset P --gpus N --gpu-memory GB [--part PART] [--json]`.

From meta tensors and DeepSpeed's allocations as its source makes them (0.19.8, runtime/zero/stage3.py); the networks
run once without arithmetic (trainers/dry_run.py). A peak is what torch.cuda.max_memory_allocated reports on each GPU.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from data_pipeline.batch import MODALITIES, TEXT, Batch, GraphBatch, SpectrumBatch, TextBatch
from data_pipeline.errors import InputError, one_line
from data_pipeline.variables import (
    CLIMATE_FIELDS,
    ENVIRONMENT,
    LATITUDES,
    LONGITUDES,
    MAX_METABOLITES,
    NODE_FEATURES,
    OBSERVABLES,
    PLANET,
    SPECTRAL_BINS,
)
from models.biochemistry import Chemistry
from models.fused_decoder import FusedDecoder
from models.objectives import build_objective
from trainers import config as run_config, dry_run, ds_config, flat, frozen as frozen_shares, optim, presets
from trainers.config import RunConfig
from trainers.dry_run import Counted, rounded
from trainers.engine import weigh
from trainers.inputs import tensors_of

MIB, GIB = 2**20, 2**30
# Memory that cuBLAS takes through torch's allocator on a Hopper card, a workspace for the forward thread and one for
# the backward thread: torch aten/src/ATen/cuda/CUDABlas.cpp, 32 MiB each on compute capability 9. The stream on which
# CUDA graphs are recorded has such a pair of its own.
CUBLAS_WORKSPACES = 2 * 32 * MIB
OUTSIDE = 1.0 * GIB  # CUDA context, NCCL, fragmentation: what the card needs beside what torch allocates
MARGIN = 1.03
TYPICAL_METABOLITES, TYPICAL_PAIRS = 220, 651  # of the quickstart's data; --data gives the real ones
ANSWER_SHARE, DESCRIPTION_SHARE = 0.25, 0.5  # of the tokens of a text


class Standing(NamedTuple):
    """Bytes that each GPU holds between steps, and what the end of a step needs beside them."""

    trained: int  # weights and master weights
    frozen: int
    gathered: int  # full copies of partitioned parameters at one time
    optimizer: int
    gradients: int  # the partitions and DeepSpeed's bucket
    reduction: int
    update: int


class Estimate(NamedTuple):
    """Bytes on each GPU, by what holds them; `peak` is the largest sum that exists at one time."""

    standing: Standing
    counted: Counted
    accumulation: int = 1

    @property
    def temporary(self) -> int:
        """Bytes at the peak beyond what stays, the batch and what autograd keeps."""
        return self._inside - self.counted.inputs - sum(self.counted.kept.values())

    @property
    def batches(self) -> int:
        """Bytes of the micro-batches of a step and of the next one, which is copied meanwhile."""
        return (self.accumulation + 1) * self.counted.inputs

    @property
    def peak(self) -> int:
        """What torch.cuda.max_memory_allocated will report."""
        stays = self.standing[: Standing._fields.index("reduction")]
        return sum(stays) + self.library + self.batches - self.counted.inputs + self._inside

    @property
    def card(self) -> int:
        """What the card must hold: the peak, and what lies in the memory of CUDA graphs meanwhile."""
        return self.peak + self.counted.replayed

    @property
    def library(self) -> int:
        """Bytes of cuBLAS workspaces."""
        return CUBLAS_WORKSPACES * (2 if self.counted.replayed else 1)

    @property
    def _inside(self) -> int:
        end = self.counted.inputs + max(self.standing.reduction, self.standing.update)
        kept = self.counted.inputs + sum(self.counted.kept.values())
        return max(self.counted.forward_peak, self.counted.backward_peak, end, kept)


def estimate(config: RunConfig, chemistry: Chemistry, batch: Batch, gpus: int = 1) -> Estimate:
    """Return what a run takes on each of some GPUs when every micro-batch is like this one.

    Args:
        batch: On the CPU; only shapes and masks matter.
    """
    objective = skeleton(config, chemistry)
    standing = standing_bytes(config, objective, gpus)
    return Estimate(standing, dry_run_step(config, objective, batch), config.train.accumulation)


def skeleton(config: RunConfig, chemistry: Chemistry) -> nn.Module:
    """Return the objective on the meta device, its parameters laid out as the engine holds them."""
    objective = on_meta(config, chemistry)
    if config.train.engine == "deepspeed":
        names = {id(module): name for name, module in objective.named_modules()}
        for module in objective.leaf_modules():  # type: ignore[operator]
            flat.flatten(module, names[id(module)])
    return objective


def on_meta(config: RunConfig, chemistry: Chemistry) -> nn.Module:
    """Return the objective on the meta device: of a language model only the configuration is read."""
    language = replace(config.model.language, text_share=1.0)  # the batch says which samples have text
    if language.dtype == "auto":
        language = replace(language, dtype="bfloat16")  # what every GPU gets, wherever this is foretold
    with torch.device("meta"):
        objective = build_objective(config.train.part, replace(config.model, language=language), chemistry)
    for module in objective.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_meta and not buffer.is_floating_point():
                module._buffers[name] = torch.zeros(buffer.shape, dtype=buffer.dtype)  # shapes may depend on it
    return objective


def dry_run_step(config: RunConfig, objective: nn.Module, batch: Batch) -> Counted:
    """Count the bytes of a micro-batch."""
    # What has few axes stays real: objectives make masks where it lies.
    counted = _with_tensors(batch, lambda t: t.to("meta") if t.is_floating_point() and t.dim() > 2 else t)

    def loss() -> Tensor:
        total: Tensor = weigh(objective(counted).terms, config, None).loss
        return total

    graphed = flat.graphed(objective) if config.train.engine == "deepspeed" else []
    return dry_run.count(objective.train(), tensors_of(counted), loss, graphed)


def _with_tensors(part: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(part, Tensor):
        return change(part)
    if is_dataclass(part) and not isinstance(part, type):
        return replace(part, **{f.name: _with_tensors(getattr(part, f.name), change) for f in fields(part)})
    return part


def standing_bytes(config: RunConfig, objective: nn.Module, gpus: int) -> Standing:
    """Return what the engine holds between steps, as DeepSpeed 0.19.8 allocates it for ZeRO-3."""
    trained = [p for p in objective.parameters() if p.requires_grad]
    frozen = [p for p in objective.parameters() if not p.requires_grad]
    if config.train.engine == "local":
        weights = sum(rounded(p.numel() * p.element_size()) for p in trained)
        return Standing(
            trained=weights,
            frozen=sum(rounded(p.numel() * p.element_size()) for p in frozen),
            gathered=0,
            optimizer=2 * weights,
            gradients=weights,
            reduction=0,
            update=0,
        )
    table = ds_config.read(ds_config.path_of(config, has_gpu=True))
    zero = table["zero_optimization"]
    offloads_optimizer = ds_config.offloads_optimizer(table)
    offloads_parameters = zero.get("offload_param", {}).get("device", "none") != "none"
    persistent = zero["stage3_param_persistence_threshold"]

    def share(p: Tensor) -> int:
        return -(-p.numel() // gpus)

    decoders = [m for m in objective.modules() if isinstance(m, FusedDecoder)]
    decoders = [] if ds_config.moves_parameters(table) else decoders
    apart = {id(p) for decoder in decoders for p in decoder.parameters() if not p.requires_grad}
    own = [frozen_shares.standing(decoder, gpus) for decoder in decoders]
    frozen = [p for p in frozen if id(p) not in apart]
    zeros = [*trained, *frozen]  # parameters that DeepSpeed knows of
    numel = sum(share(p) for p in trained)
    frozen_bytes = sum(
        rounded(share(p) * p.element_size()) for p in frozen if not offloads_parameters or p.numel() <= persistent
    )
    gathered = 0
    if gpus > 1 or offloads_parameters:
        always = [p for p in zeros if p.numel() <= persistent]
        others = [p for p in zeros if p.numel() > persistent]
        gathered += sum(rounded(p.numel() * p.element_size()) for p in always) if gpus > 1 else 0
        sizes = [p.numel() * p.element_size() for p in others]
        ahead = zero["stage3_prefetch_bucket_size"] * max((p.element_size() for p in others), default=0)
        gathered += min(ahead + max(sizes, default=0), sum(sizes))
    bucket = 4 * zero["reduce_bucket_size"]
    full = sum(p.numel() for p in trained)
    on_gpu = 0 if offloads_optimizer else numel
    largest_group = 0 if offloads_optimizer else max(_group_bytes(config, objective, gpus), default=0)
    return Standing(
        # Weights and master weights. Both are float32, but DeepSpeed shares them only where the name of the device is
        # equal to the device, which on a GPU it never is ("cuda:0" against device("cuda:0")).
        trained=(0 if offloads_parameters else 4 * numel) + 4 * on_gpu,
        frozen=frozen_bytes + sum(kept for kept, _ in own),
        gathered=gathered + sum(buffers for _, buffers in own),
        optimizer=8 * on_gpu,
        gradients=4 * on_gpu + bucket,
        # reduce_scatter_coalesced joins the gradients of a bucket; one alone, without padding, is not copied.
        reduction=0 if len(trained) == 1 else min(4 * full, bucket),
        # A group of several parameters is flattened for Adam.
        update=largest_group,
    )


def _group_bytes(config: RunConfig, objective: nn.Module, gpus: int) -> list[int]:
    """Return, for each group of several parameters, the bytes of the joined gradients."""
    groups = [g["params"] for g in optim.parameter_groups(objective, config.optim)]
    return [4 * sum(-(-p.numel() // gpus) for p in group) for group in groups if len(group) > 1]


# --- the batch to expect ---------------------------------------------------------------------------------------------


def largest_batch(config: RunConfig, metabolites: int, samples: int | None = None) -> Batch:
    """Return a batch of the largest shape that a run can meet: all modalities, full networks, full texts.

    With `model.language.text_share` below 1 as many texts and descriptions are read as in the fullest of about 10,000
    batches.
    """
    size = config.data.samples_per_rank if samples is None else samples
    nodes, length = min(MAX_METABOLITES, -(-metabolites // 8) * 8), config.data.max_tokens
    language = config.model.language
    whole = _most(size, language.text_share)
    told = _most(size, language.text_share + (1 - language.text_share) * language.read_share)
    chain = torch.eye(nodes, dtype=torch.bool).roll(1, 1).expand(size, -1, -1).clone()
    place = torch.arange(length).expand(size, -1)
    row = torch.arange(size)[:, None]
    describes = (row < told) & (place < DESCRIPTION_SHARE * length)
    present = torch.ones(size, len(MODALITIES), dtype=torch.bool)
    present[:, TEXT] = describes.any(1)
    spectrum = torch.ones(size, len(OBSERVABLES), SPECTRAL_BINS)
    return Batch(
        graph=GraphBatch(
            mask=torch.ones(size, nodes, dtype=torch.bool),
            metabolite_index=torch.arange(nodes).clamp(max=metabolites - 1).expand(size, -1).clone(),
            features=torch.zeros(size, nodes, len(NODE_FEATURES)),
            adjacency=chain,
            edge_type=chain.long(),
        ),
        climate=torch.zeros(size, len(CLIMATE_FIELDS), LATITUDES, LONGITUDES),
        spectrum=SpectrumBatch(
            ppm=spectrum, error_ppm=spectrum, clean_ppm=spectrum.clone(), star_temperature_k=spectrum[:, 0, 0]
        ),
        text=TextBatch(
            token_ids=torch.zeros(size, length, dtype=torch.long),
            attention_mask=describes | (row < whole),
            description_mask=describes,
            label_ids=torch.where((row < whole) & (place >= (1 - ANSWER_SHARE) * length), 0, -100),
        ),
        planet=torch.zeros(size, len(PLANET)),
        environment=torch.zeros(size, len(ENVIRONMENT)),
        habitable=torch.zeros(size),
        present=present,
        visible=present.clone(),
        sample_ids=tuple(str(i) for i in range(size)),
    )


def _most(size: int, share: float) -> int:
    """Return how many of `size` samples are drawn with this probability at most: mean and 3.7 standard deviations."""
    return min(size, math.ceil(size * share + 3.7 * math.sqrt(size * share * (1 - share))))


def typical_chemistry() -> Chemistry:
    """Return a vocabulary of the size of the quickstart's."""
    pairs = [(i, j) for j in range(TYPICAL_METABOLITES) for i in range(TYPICAL_METABOLITES) if i != j][:TYPICAL_PAIRS]
    names = [f"m{i}" for i in range(TYPICAL_METABOLITES)]
    return Chemistry.from_dict({"metabolites": names, "allowed_edges": [[i, j, 1] for i, j in pairs]})


# --- what fits -------------------------------------------------------------------------------------------------------


class Advice(NamedTuple):
    """The settings with the largest micro-batch that fits, and the peak that they give."""

    settings: list[str]
    gpus: int
    peak: int


def fits(peak: int, gpu_memory_gib: float) -> bool:
    """Tell whether a card holds a peak, with room for what torch does not count and for what the estimate misses."""
    return peak * MARGIN + OUTSIDE <= gpu_memory_gib * GIB


def advise(config: RunConfig, chemistry: Chemistry, gpus: int, gpu_memory_gib: float) -> Advice | None:
    """Return settings for the given cards, or for more of them when nothing fits; None when a thousand do not help.

    Smaller micro-batches come before recomputation, and that before offload: each costs more time than the one before.
    Bytes of a micro-batch grow in proportion to its samples, so two dry runs tell all sizes. The samples of a step stay
    what they are: a smaller micro-batch is accumulated.
    """
    wanted = config.data.samples_per_rank
    sizes = (max(wanted // 2, 1), 2 * max(wanted // 2, 1))
    dry: dict[str, tuple[nn.Module, Counted, Counted]] = {}
    while gpus <= 1024:
        for settings in _choices(config):
            choice = run_config.with_settings(config, settings)
            recompute = choice.model.language.recompute
            if recompute not in dry:
                objective = skeleton(choice, chemistry)
                batches = (largest_batch(choice, len(chemistry.metabolites), size) for size in sizes)
                few, many = (dry_run_step(choice, objective, batch) for batch in batches)
                dry[recompute] = objective, few, many
            objective, few, many = dry[recompute]
            standing = standing_bytes(choice, objective, gpus)
            for size in _sizes(wanted):
                accumulation = wanted // size * config.train.accumulation
                peak = Estimate(standing, _between(few, many, sizes, size), accumulation).card
                if fits(peak, gpu_memory_gib):
                    batch = [f"data.samples_per_rank={size}", f"train.accumulation={accumulation}"]
                    return Advice([*batch, *settings], gpus, peak)
        if config.train.engine == "local":
            return None
        gpus *= 2
    return None


def _choices(config: RunConfig) -> list[list[str]]:
    """Return settings to try, the fastest first."""
    choices: list[list[str]] = [[]]
    if config.train.part in ("llm", "unified") and config.model.language.recompute == "auto":
        choices.append(["model.language.recompute=layer"])
    if config.train.engine == "deepspeed" and not config.train.ds_config:
        choices.append([*choices[-1], f"train.ds_config={ds_config.FOLDER / 'zero3_offload.json'}"])
    return choices


def _sizes(wanted: int) -> list[int]:
    """Return micro-batches that divide the wanted one, the largest first."""
    return [size for size in range(wanted, 0, -1) if wanted % size == 0]


def _between(few: Counted, many: Counted, sizes: tuple[int, int], size: int) -> Counted:
    place = (size - sizes[0]) / (sizes[1] - sizes[0])

    def line(a: int, b: int) -> int:
        return max(round(a + (b - a) * place), 0)

    kept = {name: line(few.kept.get(name, 0), many.kept.get(name, 0)) for name in {*few.kept, *many.kept}}
    return Counted(
        line(few.inputs, many.inputs),
        kept,
        line(few.forward_peak, many.forward_peak),
        line(few.backward_peak, many.backward_peak),
        line(few.replayed, many.replayed),
    )


# --- the command -----------------------------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    p = argparse.ArgumentParser(prog="./launch.sh estimate", description=__doc__)
    p.add_argument("--preset", default="quickstart", metavar="NAME", help=", ".join(presets.PRESETS))
    p.add_argument("--part", default="unified", metavar="{graph_vae|cnn|llm|unified}")
    p.add_argument("--gpus", type=int, default=1, metavar="N")
    p.add_argument("--gpu-memory", type=float, default=80.0, metavar="GB", help="of one card, in GiB; 80 by default")
    p.add_argument("--data", metavar="DIR", help="take the vocabulary of metabolites of this data folder")
    p.add_argument("--set", action="append", default=[], metavar="section.field=value")
    p.add_argument("--json", action="store_true")
    return p


def configure(arguments: argparse.Namespace) -> tuple[RunConfig, Chemistry]:
    """Return what the command line asks for.

    Raises:
        InputError: An argument is wrong or the data are missing.
    """
    if arguments.gpus < 1:
        raise InputError(f"--gpus {arguments.gpus}: give the number of cards, 1 or more")
    if not arguments.gpu_memory > 0:
        raise InputError(f"--gpu-memory {arguments.gpu_memory}: give the memory of one card in GiB, above 0")
    config = run_config.with_settings(presets.preset(arguments.preset, arguments.part), arguments.set)
    if config.train.engine == "local" and arguments.gpus > 1:
        raise InputError(f"train.engine=local with --gpus {arguments.gpus}: it is for one process; use deepspeed")
    if config.train.engine == "deepspeed":
        ds_config.read(ds_config.path_of(config, has_gpu=True))
    if arguments.data is None:
        return config, typical_chemistry()
    path = Path(arguments.data) / "manifest.json"
    try:
        return config, Chemistry.from_dict(json.loads(path.read_text())["chemistry"])
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"--data {arguments.data}: no chemistry in {path} ({error}); build-data writes it") from None


def table(config: RunConfig, told: Estimate, numbers: dict[str, int]) -> list[tuple[str, str, int]]:
    """Return rows of (what, detail, bytes); they add up to the peak."""
    standing, counted = told.standing, told.counted
    rows = [
        ("parameters", f"{numbers['trained']:,} trained", standing.trained),
        ("", f"{numbers['frozen']:,} frozen", standing.frozen),
        ("gathers", "full copies of what is shared out", standing.gathered),
        ("optimizer", "two moments of what is trained", standing.optimizer),
        ("gradients", "this rank's share and the bucket", standing.gradients),
        ("batches", "of a step and the next one", told.batches),
    ]
    kept = sorted(counted.kept.items(), key=lambda item: -item[1])
    rows += [("activations" if i == 0 else "", name or "losses, outputs", size) for i, (name, size) in enumerate(kept)]
    return [*rows, ("temporary", "at the peak", told.temporary), ("library", "cuBLAS workspaces", told.library)]


@one_line
def main(argv: list[str] | None = None) -> int:
    """Print the table or JSON. Bad input is one line and exit code 2."""
    arguments = parser().parse_args(argv)
    config, chemistry = configure(arguments)
    told = estimate(config, chemistry, largest_batch(config, len(chemistry.metabolites)), arguments.gpus)
    advice = advise(config, chemistry, arguments.gpus, arguments.gpu_memory)
    numbers = count_parameters(skeleton(config, chemistry))
    rows = table(config, told, numbers)
    if arguments.json:
        print(
            json.dumps(
                {
                    "part": config.train.part,
                    "gpus": arguments.gpus,
                    "samples_per_rank": config.data.samples_per_rank,
                    "peak_bytes": told.peak,
                    "card_bytes": told.card,
                    "fits": fits(told.card, arguments.gpu_memory),
                    "bytes": told.standing._asdict() | {"batches": told.batches, "temporary": told.temporary},
                    "activations": told.counted.kept,
                    "parameters": numbers,
                    "recommended": advice and {**advice._asdict()},
                }
            )
        )
        return 0
    where = "plain torch on 1 GPU" if config.train.engine == "local" else f"ZeRO-3 on {arguments.gpus} GPU(s)"
    samples = f"{config.data.samples_per_rank} samples a rank"
    print(f"{config.train.part} of {arguments.preset}, {samples}, {where}; GiB a GPU")
    for what, detail, size in rows:
        if size >= GIB // 2000:
            print(f"  {what:12} {detail:38} {size / GIB:9.3f}")
    print(f"  {'peak':12} {'':38} {told.peak / GIB:9.3f}")
    verdict = "fits" if fits(told.card, arguments.gpu_memory) else "does not fit"
    detail = f"with CUDA graphs; {verdict} {arguments.gpu_memory:g} GiB"
    print(f"  {'card':12} {detail:38} {told.card / GIB:9.3f}")
    if advice is None:
        print("recommended: a smaller model; no micro-batch, offload or number of cards makes this one fit")
    else:
        settings = " ".join(f"--set {s}" for s in advice.settings)
        more = f" on {advice.gpus} GPUs" if advice.gpus != arguments.gpus else ""
        print(f"recommended{more}: {settings}   ({advice.peak / GIB:.1f} GiB a GPU)")
    return 0


def count_parameters(objective: nn.Module) -> dict[str, int]:
    """Return how many numbers are trained and how many are frozen."""
    trained = sum(p.numel() for p in objective.parameters() if p.requires_grad)
    return {"trained": trained, "frozen": sum(p.numel() for p in objective.parameters()) - trained}


if __name__ == "__main__":
    sys.exit(main())
