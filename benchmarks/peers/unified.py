"""The unified model as users of transformers would train it: Trainer, accelerate, ZeRO-3, peft, checkpointing."""

from __future__ import annotations

import statistics
import tempfile
import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from benchmarks.llm import CLIP_NORM, SHAPES, Load, device
from benchmarks.peers.llm import build, checkpointed
from benchmarks.unified import SIZES, facts, given, open_data, settings
from data_pipeline.batch import Batch, TextBatch
from models.biochemistry import Chemistry
from models.language import LanguageModel, LanguageOutput, splice
from models.objectives import UnifiedObjective
from models.peft_decoder import PeftDecoder
from trainers.config import RunConfig
from trainers.engine import tokens_of, weigh
from trainers.ranks import start


class Padded(nn.Module):
    """What a LanguageModel does, as one call of the causal model with padded rows, an attention mask and labels."""

    def __init__(self, language: LanguageModel, causal: Any) -> None:
        super().__init__()
        self.causal, self.read_after = causal, language.read_after
        self.prefix, self.prefix_norm, self.reader = language.prefix, language.prefix_norm, language.reader

    def plan(self, text: TextBatch, prefix_mask: Tensor) -> None:
        """Plan nothing: padded rows are read as they are."""

    def forward(self, text: TextBatch, prefix: Tensor, prefix_mask: Tensor, plan: None = None) -> LanguageOutput:
        """See LanguageModel; every sample is read, and the latent is that of its description."""
        with torch.autocast(device().type, enabled=False):  # its own code knows which types it wants
            return self._read(text, prefix, prefix_mask)

    def _read(self, text: TextBatch, prefix: Tensor, prefix_mask: Tensor) -> LanguageOutput:
        description = text.description_mask.sum(1)
        words = self.causal.get_input_embeddings()(text.token_ids)
        tokens = 0.1 * self.prefix_norm(self.prefix(prefix.to(self.prefix.weight.dtype)))
        readable = splice(text.attention_mask, prefix_mask, description)
        unlabelled = torch.full_like(prefix_mask, -100, dtype=text.label_ids.dtype)
        labels = splice(text.label_ids, unlabelled, description)
        out = self.causal(
            inputs_embeds=splice(words, tokens.to(words.dtype), description),
            attention_mask=readable.long(),
            position_ids=(readable.long().cumsum(1) - 1).clamp(min=0),
            labels=labels,
            output_hidden_states=True,
            use_cache=False,
        )
        states = out.hidden_states[self.read_after][:, : text.token_ids.shape[1]]
        answered = (text.label_ids != -100).sum(1).float()
        return LanguageOutput(self.reader(states, text.description_mask), out.loss * answered, answered)


class WithLoss(nn.Module):
    """The objective as the Trainer wants it: inputs by name, a table with the loss."""

    def __init__(self, objective: UnifiedObjective, config: RunConfig, rounded: bool) -> None:
        super().__init__()
        self.objective, self.settings, self.rounded = objective, config, rounded

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the weighted loss; DeepSpeed has made all weights bfloat16, so inputs must become it on the way."""
        with torch.autocast(device().type, torch.bfloat16, enabled=self.rounded):
            terms = self.objective(batch.to(device())).terms
        return {"loss": weigh(terms, self.settings, None).loss}


class Batches(Dataset[Batch]):
    """The batches of our stream, made before the clock runs."""

    def __init__(self, batches: list[Batch]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        """Return their number."""
        return len(self.batches)

    def __getitem__(self, place: int) -> Batch:
        """Return one."""
        return self.batches[place]


def table(width: int) -> dict[str, Any]:
    """Return the ZeRO-3 settings that the documentation of transformers shows, with what it calculates for "auto"."""
    return {
        "bf16": {"enabled": "auto"},
        "gradient_clipping": "auto",
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "steps_per_print": 10**9,
        "zero_optimization": {
            "stage": 3,
            "overlap_comm": torch.cuda.is_available(),
            "contiguous_gradients": True,
            "sub_group_size": 1e9,
            "reduce_bucket_size": width**2,
            "stage3_prefetch_bucket_size": int(0.9 * width**2),
            "stage3_param_persistence_threshold": 10 * width,
            "stage3_max_live_parameters": 1e9,
            "stage3_max_reuse_distance": 1e9,
            "stage3_gather_16bit_weights_on_model_save": False,
        },
    }


def train() -> dict[str, Any]:
    """Train for as many steps as our row; return the time of a step."""
    import transformers

    start(600.0)
    half = torch.cuda.is_available()
    asked, config = given(), settings()
    stream = open_data(config)
    steps = asked.warm_up + asked.steps
    coming = iter(stream)
    batches = [next(coming).to("cpu") for _ in range(steps)]
    SHAPES["unified"] = SIZES[asked.size]
    causal = build(Load("unified", 1, 1), liger=False, fused_head=False, small_adapters=False)
    torch.manual_seed(0)
    objective = UnifiedObjective(
        config.model, Chemistry.from_dict(stream.chemistry), PeftDecoder(causal.get_base_model())
    )
    objective.language = Padded(objective.language, causal)  # type: ignore[assignment]
    checkpointed(causal)
    seconds: list[float] = []
    losses: list[Tensor] = []

    class Clock(transformers.TrainerCallback):  # type: ignore[misc]
        """Takes the time of each step."""

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            """Start."""
            self.began = _now()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            """Stop."""
            seconds.append(_now() - self.began)

    class Watched(transformers.Trainer):  # type: ignore[misc]
        """Keeps the losses."""

        def compute_loss(self, *arguments: Any, **named: Any) -> Any:
            """See Trainer."""
            loss = super().compute_loss(*arguments, **named)
            losses.append(torch.as_tensor(loss).detach())
            return loss

    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=1,  # one batch of the stream
            max_steps=steps,
            learning_rate=config.optim.lr,
            lr_scheduler_type="constant_with_warmup",
            warmup_steps=config.optim.lr_warmup_steps,
            weight_decay=config.optim.weight_decay,
            max_grad_norm=CLIP_NORM,
            bf16=half,
            use_cpu=not torch.cuda.is_available(),
            deepspeed=table(SIZES[asked.size].width),
            remove_unused_columns=False,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        trainer = Watched(
            model=WithLoss(objective, config, half),
            args=arguments,
            train_dataset=Batches(batches),
            data_collator=lambda rows: {"batch": rows[0]},
            callbacks=[Clock()],
        )
        in_order = torch.utils.data.SequentialSampler(batches)
        trainer._get_train_sampler = lambda *_: in_order  # type: ignore[method-assign]
        trainer.train()
    timed = seconds[asked.warm_up :]
    step_s = statistics.median(timed)
    tokens = [int(tokens_of((batch,))) for batch in batches[asked.warm_up :]]
    return {
        "step_s": step_s,
        "steps_s": [round(s, 3) for s in seconds],
        "samples_per_s": asked.samples / step_s,
        "tokens_per_s": sum(tokens) / len(tokens) / step_s,
        "peak_allocated_gib": torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0,
        "trainer": transformers.__version__,
    } | facts([float(x) for x in losses])


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
