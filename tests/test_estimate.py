"""Memory that is foretold: what autograd keeps to the byte, DeepSpeed's buffers by hand, advice and refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from rank_job import CHEMISTRY, batches, config
from torch import Tensor, nn

from data_pipeline.errors import InputError
from models.configs import LoRAConfig
from models.objectives import build_objective
from trainers import dry_run, estimate
from trainers.engine import weigh
from trainers.inputs import tensors_of

KIB = 1024


def test_a_tensor_takes_whole_blocks_of_512_bytes() -> None:
    assert [dry_run.rounded(n) for n in (0, 1, 512, 513)] == [0, 512, 512, 1024]


def test_what_autograd_keeps_of_a_small_network_is_what_a_person_counts() -> None:
    with torch.device("meta"):
        net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64))
        x = torch.empty(32, 64)  # 8 KiB
    counted = dry_run.count(net, [x], lambda: net(x).square().sum())
    assert counted.inputs == 8 * KIB
    # Of the layers: relu's output (32 x 128); linear 1's output was freed. Of the loss: the output (8 KiB, for square)
    # and the sum, a block. The output was made by module "2".
    assert counted.kept == {"1": 16 * KIB, "2": 8 * KIB, "": 512}
    # While relu runs linear 1's output is there too: 8 input + 16 + 16. Later: 8 + 16 + 8 output + 8 square + a block.
    assert counted.forward_peak == 40 * KIB + 512


def test_a_gradient_is_gone_when_the_next_one_comes() -> None:
    with torch.device("meta"):
        net = nn.Sequential(*(nn.Linear(256, 256, bias=False) for _ in range(8)))  # 256 KiB each
        x = torch.empty(1, 256)
    assert dry_run.count(net, [x], lambda: net(x).sum()).backward_peak < 2 * 256 * KIB + 40 * KIB


def test_a_replayed_network_holds_copies_and_what_it_makes_lies_apart() -> None:
    with torch.device("meta"):
        whole = nn.ModuleDict({"net": nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64))})
        x = torch.empty(32, 64)  # 8 KiB
    counted = dry_run.count(whole, [x], lambda: whole["net"](x).square().sum(), ["net"])
    weights = 2 * 32 * KIB + 2 * 512  # the second bias of 256 bytes takes a block too
    held = weights + 8 * KIB + weights + 2 * 8 * KIB  # copies of weights and input, gradients, output and its gradient
    assert counted.kept == {"CUDA graphs": held, "": 512}
    assert counted.replayed == 32 * KIB  # relu and what it reads
    assert counted.forward_peak == held + 8 * KIB + 8 * KIB + 512  # input, square, sum


@pytest.mark.parametrize("engine", ["deepspeed", "local"])
@pytest.mark.parametrize("part", ["cnn", "graph_vae"])
def test_meta_tensors_are_counted_as_real_ones(part: str, engine: Literal["deepspeed", "local"]) -> None:
    settings, batch = config(part, 1), next(batches(0, 1))
    settings = replace(settings, train=replace(settings.train, engine=engine))
    foretold = estimate.dry_run_step(settings, estimate.skeleton(settings, CHEMISTRY), batch)
    objective = build_objective(part, settings.model, CHEMISTRY)
    names = {module: name for name, module in objective.named_modules()}
    for module in objective.leaf_modules() if engine == "deepspeed" else []:
        estimate.flat.flatten(module, names[module])
    graphed = estimate.flat.graphed(objective) if engine == "deepspeed" else []

    def loss() -> Tensor:
        return weigh(objective(batch).terms, settings, None).loss

    real = dry_run.count(objective.train(), tensors_of(batch), loss, graphed)
    assert bool(real.replayed) == (engine == "deepspeed")
    assert foretold.replayed == pytest.approx(real.replayed, abs=8 * dry_run.BLOCK)
    assert foretold.inputs == real.inputs
    for name, size in real.kept.items():  # constants that are made once take a block on one side only
        assert foretold.kept[name] == pytest.approx(size, abs=8 * dry_run.BLOCK)
    assert foretold.forward_peak == pytest.approx(real.forward_peak, rel=2e-3)
    assert foretold.backward_peak == pytest.approx(real.backward_peak, rel=2e-3)


def test_zero3_holds_20_bytes_a_trained_number_and_its_bucket() -> None:
    settings = config("cnn", 1)
    objective = estimate.skeleton(settings, CHEMISTRY)
    trained = estimate.count_parameters(objective)["trained"]
    standing = estimate.standing_bytes(settings, objective, 1)
    bucket = 4 * 50_000_000
    assert standing.trained + standing.optimizer + standing.gradients - bucket == 20 * trained
    assert standing.gathered == 0  # one card holds everything


def test_two_cards_share_what_is_trained_and_hold_copies_of_it_while_they_use_it() -> None:
    settings = config("cnn", 1)
    objective = estimate.skeleton(settings, CHEMISTRY)
    one, two = (estimate.standing_bytes(settings, objective, gpus) for gpus in (1, 2))
    assert two.optimizer == pytest.approx(one.optimizer / 2, abs=64)
    assert two.gathered >= one.trained / 2  # weights without their masters


def test_offload_moves_the_optimizer_off_the_card() -> None:
    settings = config("cnn", 1)
    offloaded = replace(settings, train=replace(settings.train, ds_config="ds_configs/zero3_offload.json"))
    objective = estimate.skeleton(settings, CHEMISTRY)
    assert estimate.standing_bytes(offloaded, objective, 1).optimizer == 0


def test_advice_fits_and_keeps_the_samples_of_a_step() -> None:
    settings = replace(config("cnn", 1), data=replace(config("cnn", 1).data, samples_per_rank=64))
    whole = estimate.advise(settings, CHEMISTRY, 1, 80.0)
    assert whole is not None and whole.settings == ["data.samples_per_rank=64", "train.accumulation=1"]
    tight = estimate.advise(
        settings, CHEMISTRY, 1, (whole.peak * 0.9 * estimate.MARGIN + estimate.OUTSIDE) / estimate.GIB
    )
    assert tight is not None and tight.peak < 0.9 * whole.peak
    values = dict(s.split("=") for s in tight.settings)
    assert int(values["data.samples_per_rank"]) * int(values["train.accumulation"]) == 64


def test_nothing_is_advised_when_nothing_fits() -> None:
    assert estimate.advise(config("cnn", 1), CHEMISTRY, 1024, 1.0) is None


def test_the_rows_of_the_table_add_up_to_the_peak() -> None:
    settings = config("cnn", 1)
    told = estimate.estimate(settings, CHEMISTRY, next(batches(0, 1)))
    rows = estimate.table(settings, told, {"trained": 1, "frozen": 0})
    assert sum(size for _, _, size in rows) == told.peak


def test_json_says_what_the_table_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert estimate.main(["--part", "cnn", "--gpu-memory", "80", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["fits"] and told["peak_bytes"] > 2e8
    assert told["recommended"]["settings"][0] == "data.samples_per_rank=16"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpus", "0"], "--gpus 0: give the number of cards"),
        (["--gpu-memory", "-1"], "--gpu-memory -1.0: give the memory"),
        (["--preset", "one-gpu"], "did you mean one_gpu"),
        (["--part", "unifed"], "did you mean unified"),
        (["--part", "cnn", "--set", "optim.lrr=1"], "did you mean"),
        (["--part", "cnn", "--set", "train.engine=local", "--gpus", "2"], "it is for one process"),
        (["--part", "cnn", "--data", "/nowhere"], "no chemistry in"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert estimate.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_shape_of_batch_is_refused_by_no_network() -> None:
    settings = config("graph_vae", 1)
    batch = estimate.largest_batch(settings, metabolites=12, samples=3)
    assert batch.graph.mask.shape == (3, 16) and batch.text.token_ids.shape == (3, settings.data.max_tokens)
    with pytest.raises(InputError):
        estimate.configure(estimate.parser().parse_args(["--gpus", "-3"]))


@pytest.mark.parametrize("recompute", ["none", "layer"])
def test_a_language_model_is_counted_from_its_configuration_alone(recompute: str, tmp_path: Path) -> None:
    shape = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 256, "hidden_size": 64,
        "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(shape))
    settings = config("llm", 1)
    options = {"checkpoint": str(tmp_path), "dtype": "bfloat16", "recompute": recompute}
    language = replace(settings.model.language, lora=LoRAConfig(rank=2), **options)
    settings = replace(settings, model=replace(settings.model, language=language))
    told = estimate.estimate(settings, CHEMISTRY, estimate.largest_batch(settings, 8, samples=4))
    # Embedding and head 256 x 64, two projections 64 x 64, two 64 x 32, three 64 x 128 and two norms a layer, one norm
    # more; bfloat16. The LoRA adapters are not frozen.
    frozen = 2 * 256 * 64 + 4 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128 + 2 * 64) + 64
    assert told.standing.frozen == pytest.approx(2 * frozen, rel=0.02)
    tokens = 4 * settings.data.max_tokens
    if recompute == "layer":  # the input of each layer and of the last norm, and what comes out
        assert told.counted.kept["language"] == pytest.approx(6 * tokens * 64 * 2, rel=0.05)


def test_recomputation_is_tried_before_offload_and_each_after_smaller_micro_batches() -> None:
    llm = replace(config("llm", 1), train=replace(config("llm", 1).train, part="llm"))
    assert [[s.split("=")[1].split("/")[-1] for s in choice] for choice in estimate._choices(llm)] == [
        [], ["layer"], ["layer", "zero3_offload.json"],
    ]  # fmt: skip


def test_with_a_share_of_texts_a_batch_holds_as_many_as_chance_can_bring() -> None:
    settings = config("unified", 1)
    language = replace(settings.model.language, text_share=0.1, read_share=0.0)
    text = estimate.largest_batch(
        replace(settings, model=replace(settings.model, language=language)), metabolites=8, samples=100
    ).text
    assert text.description_mask.any(1).sum() == 22  # 10 + 3.7 x 3 = 21.1
    language = replace(language, read_share=1.0)  # the descriptions of all others are read
    text = estimate.largest_batch(
        replace(settings, model=replace(settings.model, language=language)), metabolites=8, samples=100
    ).text
    assert text.description_mask.any(1).sum() == 100 and (text.label_ids >= 0).any(1).sum() == 22
    assert text.attention_mask[99].sum() == text.description_mask[99].sum()
