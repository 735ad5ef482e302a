"""Two ZeRO-3 ranks of the fused decoder equal one process, also when one has no text; run as a script: a rank."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data_fixture import sample
from start_ranks import start_ranks

from data_pipeline.batch import Batch, TextBatch
from data_pipeline.collate import collate
from models.configs import LanguageConfig, LoRAConfig
from models.fuse import fuse
from models.language import LanguageModel
from models.losses import Term
from models.objectives import ObjectiveOutput
from trainers import frozen
from trainers.config import DataConfig, OptimConfig, RunConfig, TrainConfig
from trainers.engine import DeepSpeedEngine, build_engine
from trainers.ranks import finish

pytestmark = pytest.mark.ranks
SAMPLES, STEPS, LENGTH = 4, 3, 12


class Objective(nn.Module):
    """The language model with a learned prefix, which every sample sees."""

    def __init__(self, recompute: str, quantise: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        sizes = dict(vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4)
        causal = LlamaForCausalLM(LlamaConfig(**sizes, num_key_value_heads=2)).requires_grad_(False)
        targets = ("q_proj", "v_proj", "o_proj", "gate_proj", "down_proj")
        options = {"lora": LoRAConfig(rank=2, targets=targets), "recompute": recompute, "quantise": quantise}
        config = LanguageConfig(latent_dim=4, **options)
        self.language = LanguageModel(config, fuse(causal, config), prefix_width=8)

    def forward(self, batch: Batch) -> ObjectiveOutput:
        """Return text/ce."""
        prefix = torch.linspace(-1, 1, 16).view(2, 8).expand(len(batch.sample_ids), -1, -1)
        output = self.language(batch.text, prefix, torch.ones_like(prefix[..., 0], dtype=torch.bool))
        near = (output.latent - 1).square().sum() * 0.01
        return ObjectiveOutput({"text/ce": Term(output.answer_nats.sum() + near, output.answer_tokens.sum())}, {})

    def leaf_modules(self) -> list[nn.Module]:
        """Return none: every layer owns its parameters."""
        return []


def text(step: int, silent: int) -> TextBatch:
    """Return texts of different lengths; the first `silent` samples have none."""
    generator = torch.Generator().manual_seed(step)
    ids = torch.randint(1, 40, (SAMPLES, LENGTH), generator=generator)
    place, length = torch.arange(LENGTH), torch.tensor([[9], [7], [12], [8]])
    read = (place < length) & (torch.arange(SAMPLES) >= silent)[:, None]
    answer = read & (place >= length - 3)
    return TextBatch(
        token_ids=ids * read,
        attention_mask=read,
        description_mask=read & (place < 4),
        label_ids=torch.where(answer, ids, -100),
    )


def train(
    engine: str, world: int, rank: int, recompute: str, silent: int, quantise: str, weights: str = ""
) -> tuple[list[list[float]], dict[str, Tensor]]:
    per_rank = SAMPLES // world
    config = RunConfig(
        data=DataConfig(samples_per_rank=per_rank),
        optim=OptimConfig(lr=3e-2, lr_warmup_steps=1, clip_norm=0.5),
        train=TrainConfig(part="llm", engine=engine, steps=STEPS, process_group_timeout_s=60.0),
    )
    objective = Objective(recompute, quantise)
    made = DeepSpeedEngine(objective, config, weights) if weights else build_engine(objective, config)
    curve = []
    for step in range(STEPS):
        mine = slice(rank * per_rank, (rank + 1) * per_rank)
        whole = text(step, silent)
        names = ("token_ids", "attention_mask", "description_mask", "label_ids")
        part = TextBatch(**{n: getattr(whole, n)[mine] for n in names})
        samples = [sample(i + 1) for i in range(SAMPLES)][mine]
        report = made.train_step(replace(collate(samples, max_nodes=4), text=part))
        curve.append([report.loss, report.grad_norm])
    assert made._audit is None  # gradients reached adapters in two steps; it would warn of tensors that got none
    if weights == "gathers":
        shares = objective.language.causal.frozen
        assert len(shares.units) == 5 and shares.kept_bytes * world == sum(shares.unit_bytes())
    return curve, made.weights()


@pytest.mark.parametrize(
    ("recompute", "silent", "quantise", "shared_by"),
    [
        ("auto", 0, "none", "gathers"), ("auto", 2, "none", "gathers"), ("layer", 0, "none", "gathers"),
        ("layer", 2, "nf4", "gathers"), ("auto", 2, "none", "deepspeed"), ("layer", 0, "nf4", "deepspeed"),
    ],
)  # fmt: skip
def test_two_zero3_ranks_equal_one_process(
    recompute: str, silent: int, quantise: str, shared_by: str, tmp_path: Path
) -> None:
    arguments = [recompute, str(silent), quantise, shared_by, str(tmp_path)]
    start_ranks(__file__, arguments, 2, tmp_path / "curve.json", timeout_s=120)
    curve, weights = train("local", 1, 0, recompute, silent, quantise)
    for two, one in zip(json.loads((tmp_path / "curve.json").read_text()), curve, strict=True):
        assert two == pytest.approx(one, rel=5e-5)
    written = torch.load(tmp_path / "weights.pt", weights_only=True)
    for name, value in weights.items():
        torch.testing.assert_close(written[name], value, rtol=2e-5, atol=2e-5, msg=name)


def main() -> None:
    recompute, silent, quantise, shared_by, folder = sys.argv[1:]
    frozen.WHOLE_ON_CPU = 100  # or nothing of so small a model would be shared out
    curve, weights = train("deepspeed", 2, int(os.environ["RANK"]), recompute, int(silent), quantise, shared_by)
    if weights:
        torch.save(weights, Path(folder) / "weights.pt")
        (Path(folder) / "curve.json").write_text(json.dumps(curve))
    finish(0)


if __name__ == "__main__":
    main()
