"""Make training steps: with DeepSpeed ZeRO-3 on any number of ranks, or in plain torch as the reference for it."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from data_pipeline.batch import Batch
from data_pipeline.errors import InputError
from models.adapters import GradientAudit
from models.fused_decoder import FusedDecoder
from models.losses import Term, weighted_total
from models.objectives import ObjectiveOutput
from trainers import ds_config, flat, frozen, optim, ranks, zero_patches
from trainers.config import RunConfig

_LOG = logging.getLogger(__name__)


class NonFiniteLossError(ArithmeticError):
    """A loss or a gradient is NaN or infinite; the message names the terms."""


@dataclass(frozen=True)
class StepReport:
    """What one step did, equal on all ranks."""

    step: int  # steps done, this one included
    loss: float
    means: dict[str, float]  # of each term over all samples of the step
    lr: dict[str, float]  # by part
    samples: int
    done: Callable[[], dict[str, float]]  # grad_norm and tokens

    @property
    def grad_norm(self) -> float:
        """Norm of the gradient before clipping. On a GPU, to ask for it is to wait until the step is done there."""
        return self.done()["grad_norm"]

    @property
    def tokens(self) -> int:
        """Text tokens that were read, which is known when the step is done on the GPU."""
        return int(self.done()["tokens"])


class Evaluated(NamedTuple):
    """Terms summed over all ranks, and the outputs for this rank's samples."""

    terms: dict[str, Term]
    outputs: dict[str, Tensor]


class TrainState(NamedTuple):
    """All that a run needs to go on with any number of ranks, in float32 on the CPU; by parameter name."""

    step: int
    parameters: dict[str, Tensor]
    exp_avg: dict[str, Tensor]  # empty before the first step
    exp_avg_sq: dict[str, Tensor]
    buffers: dict[str, Tensor]


@runtime_checkable
class Engine(Protocol):
    """Repeats one objective's step; every method but the plain attributes is called by all ranks together."""

    objective: nn.Module
    config: RunConfig
    rank: int
    world: int
    zero_stage: int
    device: torch.device
    step: int
    steps_ahead: int  # after so many more steps a step is done on the device

    @property
    def is_main(self) -> bool:
        """This rank writes files and logs."""
        ...

    def train_step(self, *micro_batches: Batch) -> StepReport:
        """Accumulate the gradients of `train.accumulation` micro-batches and make one step."""
        ...

    def evaluate(self, batch: Batch) -> Evaluated:
        """Compute every term and output of one batch, without gradients."""
        ...

    def weights(self, prefix: str = "") -> dict[str, Tensor]:
        """Return what is trained and the buffers below a module, float32 on the CPU; {} on other ranks than 0."""
        ...

    def state(self) -> TrainState:
        """Return the state on rank 0, an empty one elsewhere."""
        ...

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the full shape of everything that `weights` names."""
        ...

    def load_state(self, state: TrainState) -> None:
        """Take over a state that every rank holds in full."""
        ...

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Take over parameters and buffers by name, the rest stays; every rank holds them in full."""
        ...

    def any(self, flag: bool) -> Callable[[], bool]:
        """Ask whether the flag is set on any rank; the answer comes when what is queued on a GPU is done."""
        ...

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all ranks in order."""
        ...


def non_finite(named: Mapping[str, float]) -> list[str]:
    """Return the names whose value is NaN or infinite."""
    return [name for name, value in named.items() if not math.isfinite(value)]


def seed_step(config: RunConfig, step: int, rank: int) -> None:
    """Seed torch from (seed, step, rank) alone, so that a resumed step draws what it would have drawn.

    As torch.manual_seed does, which also looks for six kinds of devices and keeps a stack trace for each that is not
    there: .36 ms.
    """
    seed = (config.train.seed * 1_000_003 + step) * 8_191 + rank
    torch.default_generator.manual_seed(seed)
    for generator in torch.cuda.default_generators:
        generator.manual_seed(seed)


def persistent_buffers(objective: nn.Module) -> dict[str, Tensor]:
    """Return the buffers that belong into a checkpoint."""
    parameters = {name for name, _ in objective.named_parameters(remove_duplicate=False)}
    kept = set(objective.state_dict()) - parameters
    return {name: buffer for name, buffer in objective.named_buffers() if name in kept}


class LocalEngine:
    """Plain torch in one process: what every other engine has to agree with."""

    zero_stage = 0
    steps_ahead = 0
    rank = 0
    world = 1
    is_main = True

    def __init__(self, objective: nn.Module, config: RunConfig) -> None:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise InputError(
                f"train.engine=local with {os.environ['WORLD_SIZE']} ranks: start one process, or use deepspeed"
            )
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.objective = objective.to(self.device)
        self.config = config
        self.step = 0
        self.optimizer = optim.adamw(
            optim.parameter_groups(objective, config.optim), config.optim, self.device.type == "cuda"
        )
        self._trained = {n: p for n, p in objective.named_parameters() if p.requires_grad}
        self._buffers = persistent_buffers(objective)
        self._audit: GradientAudit | None = GradientAudit(objective, self.device)

    def train_step(self, *micro_batches: Batch) -> StepReport:
        """See Engine."""
        seed_step(self.config, self.step, self.rank)
        self.objective.train()
        lr = optim.set_lr(self.optimizer, self.step, self.config.train.steps, self.config.optim)
        self.optimizer.zero_grad(set_to_none=False)
        means: list[dict[str, float]] = []
        for batch in micro_batches:
            output: ObjectiveOutput = self.objective(here(batch, self.device))
            total = weigh(output.terms, self.config, None)
            coming = Coming(total.means)
            (total.loss / len(micro_batches)).backward()
            means.append(finite_means(coming, self.step))
        for parameter in self._trained.values():
            if parameter.grad is None:  # plain torch would leave it without weight decay; ZeRO-3 does not
                parameter.grad = torch.zeros_like(parameter)
        norm = float(nn.utils.clip_grad_norm_(self._trained.values(), self.config.optim.clip_norm))
        refuse_norm(norm, self.step)
        self.optimizer.step()
        self.step += 1
        self._audit = audited(self._audit, Tensor.clone)
        done = {"grad_norm": norm, "tokens": float(tokens_of(micro_batches))}
        return report(self.step, means, lr, micro_batches, 1, lambda: done)

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> Evaluated:
        """See Engine."""
        self.objective.eval()
        output: ObjectiveOutput = self.objective(here(batch, self.device))
        return Evaluated(output.terms, output.outputs)

    def weights(self, prefix: str = "") -> dict[str, Tensor]:
        """See Engine."""
        named = {**self._trained, **self._buffers}
        return {n: t.detach().cpu().clone() for n, t in named.items() if n.startswith(prefix)}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """See Engine."""
        return {n: tuple(t.shape) for n, t in {**self._trained, **self._buffers}.items()}

    def state(self) -> TrainState:
        """See Engine."""
        moments: dict[str, dict[str, Tensor]] = {"exp_avg": {}, "exp_avg_sq": {}}
        if self.step:
            for key, moment in moments.items():
                moment.update({n: self.optimizer.state[p][key].cpu().clone() for n, p in self._trained.items()})
        weights = self.weights()
        return TrainState(
            self.step,
            {n: weights[n] for n in self._trained},
            moments["exp_avg"],
            moments["exp_avg_sq"],
            {n: weights[n] for n in self._buffers},
        )

    def load_state(self, state: TrainState) -> None:
        """See Engine."""
        self.load_weights({**state.parameters, **state.buffers})
        self.step = state.step
        if state.step:
            for name, parameter in self._trained.items():
                self.optimizer.state[parameter] = {
                    "step": adam_step(state.step, parameter),
                    "exp_avg": state.exp_avg[name].to(parameter).clone(),
                    "exp_avg_sq": state.exp_avg_sq[name].to(parameter).clone(),
                }

    @torch.no_grad()
    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """See Engine."""
        named = {**self._trained, **self._buffers}
        for name, value in weights.items():
            named[name].copy_(value)

    def any(self, flag: bool) -> Callable[[], bool]:
        """See Engine."""
        return lambda: flag

    def gather(self, value: Any) -> list[Any]:
        """See Engine."""
        return [value]


class DeepSpeedEngine:
    """ZeRO-3: every rank holds its share of the parameters, gradients and moments, and a share of each batch."""

    zero_stage = 3

    def __init__(self, objective: nn.Module, config: RunConfig, frozen_weights: str = "auto") -> None:
        """Share everything out over the ranks.

        Args:
            objective: What is trained.
            config: How.
            frozen_weights: How those of a fused decoder reach the ranks that need them: "copies" or "gathers" of
                trainers/frozen.py, "auto" for the better one that is possible, "deepspeed" to leave them to it.
        """
        deepspeed = ranks.start(config.train.process_group_timeout_s)
        from deepspeed.utils.z3_leaf_module import set_z3_leaf_module

        on_gpu = torch.cuda.is_available()
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
        self.config = config
        self.step = 0
        table = ds_config.read(ds_config.path_of(config, on_gpu))
        names = {id(module): name for name, module in objective.named_modules()}
        leaves = objective.leaf_modules()  # type: ignore[operator]
        recorded = flat.graphed(objective) if on_gpu else []
        flats = [flat.flatten(leaf, names[id(leaf)], names[id(leaf)] in recorded) for leaf in leaves]
        self._flat = {f.name: f for of_leaf in flats for f in of_leaf}
        leaves = [leaf.to(self.device).flat if found else leaf for leaf, found in zip(leaves, flats, strict=True)]
        if frozen_weights != "deepspeed" and not ds_config.moves_parameters(table):
            decoders = [m for m in objective.modules() if isinstance(m, FusedDecoder)]
            for decoder in decoders:
                frozen.share_out(decoder, self.device, frozen_weights)
            leaves = [*leaves, *decoders]
        self.leaves = leaves  # modules that DeepSpeed gathers whole
        groups = optim.parameter_groups(objective, config.optim)
        if ds_config.offloads_optimizer(table):
            betas = (config.optim.beta1, config.optim.beta2)
            optimizer = deepspeed.ops.adam.DeepSpeedCPUAdam(groups, lr=config.optim.lr, betas=betas, adamw_mode=True)
        else:
            optimizer = optim.adamw(groups, config.optim, on_gpu)
        for module in leaves:
            set_z3_leaf_module(module, True)
        self._root = _Root(objective, config, self._sum)
        with flat.only_holders(self._root):
            self._engine, *_ = deepspeed.initialize(
                model=self._root,
                optimizer=optimizer,
                config=ds_config.complete(table, config, self.world),
                dist_init_required=False,
            )
            flat.remember(self._root)
        self.objective = objective
        self._zero = self._engine.optimizer
        self._done: Coming | None = None  # what the last step leaves to be read
        offloads = ds_config.moves_parameters(table) or ds_config.offloads_optimizer(table)
        self.steps_ahead = int(on_gpu and not offloads)
        if not offloads:
            zero_patches.clip_at_once(self._zero)
        self._order_gathers = zero_patches.run_ahead(self._zero, self.world) if self.steps_ahead else lambda: None
        self._trained = {n: p for n, p in objective.named_parameters() if p.requires_grad}
        self._buffers = persistent_buffers(objective)
        self._audit: GradientAudit | None = GradientAudit(objective, self.device)
        self._gathered = deepspeed.zero.GatheredParameters

    @property
    def is_main(self) -> bool:
        """See Engine."""
        return self.rank == 0

    def train_step(self, *micro_batches: Batch) -> StepReport:
        """See Engine."""
        seed_step(self.config, self.step, self.rank)
        if not self._root.training:  # it would tell every module so
            self._engine.train()
        lr = optim.set_lr(self._zero.optimizer, self.step, self.config.train.steps, self.config.optim)
        means = []
        for batch in micro_batches:
            loss: Tensor = self._engine(here(batch, self.device))
            coming = Coming(self._root.take_means())
            # Averages over ranks and, where there are several micro-batches, over these.
            self._engine.backward(loss, scale_wrt_gas=self.config.train.accumulation > 1)
            # Before the update, and the same on all ranks: none goes on alone.
            means.append(finite_means(coming, self.step))
            self._settle()
            self._engine.step()
        tokens = self._sum(tokens_of(micro_batches).to(self.device, torch.float64))
        norm = torch.as_tensor(self._engine.get_global_grad_norm(), device=self.device)
        self._done = Coming({"grad_norm": norm.to(tokens), "tokens": tokens})
        self._order_gathers()
        self.step += 1
        if not self.steps_ahead:
            self._settle()
        self._audit = audited(self._audit, self._sum)
        return report(self.step, means, lr, micro_batches, self.world, self._done.read)

    def _settle(self) -> None:
        """Stop the run if the gradient of the last step was not finite; waits for that step."""
        if self._done is not None:
            refuse_norm(self._done.read()["grad_norm"], self.step - 1)

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> Evaluated:
        """See Engine."""
        self._engine.eval()
        self._engine(here(batch, self.device))
        output = self._root.take_output()
        names = list(output.terms)
        packed = torch.stack([x.float() for n in names for x in output.terms[n]])
        totals = self._sum(packed).view(-1, 2)
        return Evaluated({n: Term(*row) for n, row in zip(names, totals, strict=True)}, output.outputs)

    def weights(self, prefix: str = "") -> dict[str, Tensor]:
        """See Engine."""
        self._settle()
        weights = self._gather(None, prefix)  # the float32 master
        if self.is_main:
            weights |= {n: b.detach().cpu().clone() for n, b in self._buffers.items() if n.startswith(prefix)}
        return weights

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """See Engine."""
        shapes = {slot.name: tuple(slot.shape) for f in self._flat.values() for slot in f.slots}
        shapes |= {n: tuple(p.ds_shape) for n, p in self._trained.items() if n not in self._flat}  # type: ignore[attr-defined]
        return shapes | {n: tuple(b.shape) for n, b in self._buffers.items()}

    def state(self) -> TrainState:
        """See Engine."""
        self._settle()
        weights = self._gather(None, "")
        exp_avg, exp_avg_sq = (self._gather(k, "") if self.step else {} for k in ("exp_avg", "exp_avg_sq"))
        buffers = {n: b.detach().cpu().clone() for n, b in self._buffers.items()} if self.is_main else {}
        return TrainState(self.step, weights, exp_avg, exp_avg_sq, buffers)

    def load_state(self, state: TrainState) -> None:
        """See Engine."""
        self.load_weights({**state.parameters, **state.buffers})
        self.step = state.step
        if not state.step:
            return
        for group in self._zero.fp32_partitioned_groups_flat:
            self._zero.optimizer.state[group] = {
                "step": adam_step(state.step, group)
                if isinstance(self._zero.optimizer, torch.optim.AdamW)
                else state.step,
                "exp_avg": torch.zeros_like(group),
                "exp_avg_sq": torch.zeros_like(group),
            }
        for name, parameter in self._trained.items():
            for key, moment in (("exp_avg", state.exp_avg), ("exp_avg_sq", state.exp_avg_sq)):
                value = torch.cat([moment[n].flatten() for n in self._inside(name)])
                self._zero.set_local_hp_param(self._slice(parameter, value), parameter, key)

    @torch.no_grad()
    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """See Engine."""
        for name in set(weights) & set(self._buffers):
            self._buffers[name].copy_(weights[name])
        # In the order of the module: that of a file differs between ranks, and gathering in two orders hangs.
        for name, parameter in self._trained.items():
            if not set(self._inside(name)) & set(weights):
                continue
            held = self._zero.get_full_hp_param(parameter).detach().cpu().clone()
            for inner, values in self._apart(name, held).items():
                if inner in weights:
                    values.copy_(weights[inner])
            with self._gathered([parameter], modifier_rank=0):
                if self.is_main:
                    parameter.copy_(held.view(parameter.shape))
            self._zero.set_local_hp_param(self._slice(parameter, held), parameter)

    def any(self, flag: bool) -> Callable[[], bool]:
        """See Engine."""
        asked = Coming({"flags": self._sum(torch.full((), float(flag), device=self.device))})
        return lambda: asked.read()["flags"] > 0

    def gather(self, value: Any) -> list[Any]:
        """See Engine."""
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def _sum(self, values: Tensor) -> Tensor:
        dist.all_reduce(values)
        return values

    def _inside(self, name: str) -> list[str]:
        """Return the names of what lies in a parameter of the engine, in order."""
        return [slot.name for slot in self._flat[name].slots] if name in self._flat else [name]

    def _apart(self, name: str, value: Tensor) -> dict[str, Tensor]:
        """Return views of what a full value of a parameter of the engine holds, by the objective's names."""
        return flat.take_apart(self._flat[name], value) if name in self._flat else {name: value}

    def _gather(self, moment: str | None, prefix: str) -> dict[str, Tensor]:
        """Return weights (None) or a moment by the objective's names on rank 0; all ranks must call it."""
        gathered: dict[str, Tensor] = {}
        for name, parameter in self._trained.items():
            if any(n.startswith(prefix) for n in self._inside(name)):
                value = self._zero.get_full_hp_param(parameter, optim_state_key=moment)
                if self.is_main:
                    whole = value.detach().cpu().clone()
                    gathered |= {n: v.clone() for n, v in self._apart(name, whole).items() if n.startswith(prefix)}
        return gathered

    def _slice(self, parameter: nn.Parameter, value: Tensor) -> Tensor:
        """Return this rank's share of a full value; ZeRO-3 pads the last share with zeros."""
        size = parameter.ds_tensor.numel()  # type: ignore[attr-defined]
        flat = torch.zeros(size * self.world)
        flat[: value.numel()] = value.flatten()
        return flat[size * self.rank : size * (self.rank + 1)].to(self.device)


class _Root(nn.Module):
    """The objective as DeepSpeed sees it: it hooks each tensor that a module returns, so this one returns the loss."""

    def __init__(self, objective: nn.Module, config: RunConfig, reduce_items: Any) -> None:
        super().__init__()
        self.objective = objective
        self._config, self._reduce_items = config, reduce_items
        self._means: dict[str, Tensor] = {}
        self._output: ObjectiveOutput | None = None

    def forward(self, batch: Batch) -> Tensor:
        """Return the weighted loss; in evaluation just any sum, for `take_output` has what counts."""
        output: ObjectiveOutput = self.objective.forward(batch)  # not called, or every term and output would be hooked
        if not self.training:
            self._output = output
            return torch.stack([term.total.float() for term in output.terms.values()]).sum()
        total = weigh(output.terms, self._config, self._reduce_items)
        self._means = total.means
        loss: Tensor = total.loss
        return loss

    def take_means(self) -> dict[str, Tensor]:
        """Return the means of the last training pass."""
        means, self._means = self._means, {}
        return means

    def take_output(self) -> ObjectiveOutput:
        """Return the terms and outputs of the last evaluation pass."""
        output, self._output = self._output, None
        assert output is not None
        return output


def weigh(terms: Mapping[str, Term], config: RunConfig, reduce_items: Any) -> Any:
    """Weigh the terms that this objective has."""
    return weighted_total(terms, {n: w for n, w in config.loss_weights.items() if n in terms}, reduce_items)


def here(batch: Batch, device: torch.device) -> Batch:
    """Return the batch on the device; one that is there already is not looked at again (a check would wait for it)."""
    return batch if batch.present.device == device else batch.to(device)


class Coming:
    """Named numbers on their way from the device; reading them waits for what made them, not for what came after."""

    def __init__(self, numbers: Mapping[str, Tensor]) -> None:
        self.names = list(numbers)
        stacked = torch.stack([numbers[n].detach() for n in self.names])
        self._ready = torch.cuda.Event() if stacked.is_cuda else None
        if self._ready is None:
            self._values = stacked
        else:
            self._values = torch.empty(stacked.shape, dtype=stacked.dtype, pin_memory=True)
            self._values.copy_(stacked, non_blocking=True)
            self._ready.record()

    def read(self) -> dict[str, float]:
        """Return them as numbers."""
        if self._ready is not None:
            self._ready.synchronize()
        return dict(zip(self.names, self._values.tolist(), strict=True))


def finite_means(means: Coming, step: int) -> dict[str, float]:
    """Return the means as numbers. Called when the backward pass is queued, so that the device has work meanwhile.

    Raises:
        NonFiniteLossError: One of them is NaN or infinite.
    """
    values = means.read()
    if bad := non_finite({n: v for n, v in values.items() if n != "loss"}) or non_finite(values):
        named = ", ".join(f"{n}={values[n]}" for n in bad)
        raise NonFiniteLossError(f"step {step + 1}: {named}: not finite; lower optim.lr or look at the data")
    return values


def refuse_norm(norm: float, step: int) -> None:
    """Stop the run when the gradient is not finite.

    Raises:
        NonFiniteLossError: It is NaN or infinite.
    """
    if not math.isfinite(norm):
        raise NonFiniteLossError(
            f"step {step + 1}: grad_norm={norm}: not finite although the losses are; lower optim.lr"
        )


def audited(audit: GradientAudit | None, over_ranks: Callable[[Tensor], Tensor]) -> GradientAudit | None:
    """Let the audit of the adapters see a step, say what it found; return it while it goes on."""
    silent = None if audit is None else audit.step(over_ranks)
    if silent:
        _LOG.warning("no gradient reached %d adapter tensors in two steps, such as %s", len(silent), silent[0])
    return audit if silent is None else None


def report(
    step: int, means: list[dict[str, float]], lr: dict[str, float], batches: tuple[Batch, ...], world: int,
    done: Callable[[], dict[str, float]],
) -> StepReport:  # fmt: skip
    """Average what the micro-batches of a step said."""
    mean = {n: sum(m[n] for m in means) / len(means) for n in means[0]}
    samples = sum(len(b.sample_ids) for b in batches) * world
    return StepReport(step, mean.pop("loss"), mean, lr, samples, done)


def tokens_of(batches: tuple[Batch, ...]) -> Tensor:
    """Return the number of text tokens that are read."""
    return torch.stack([b.text.attention_mask.sum() for b in batches]).sum()


def adam_step(step: int, like: Tensor) -> Tensor:
    """Return torch's step counter of a parameter; the fused AdamW keeps it on the device."""
    return torch.tensor(float(step), device=like.device if like.is_cuda else "cpu")


def build_engine(objective: nn.Module, config: RunConfig) -> Engine:
    """Return the engine that the config names."""
    return LocalEngine(objective, config) if config.train.engine == "local" else DeepSpeedEngine(objective, config)
