"""Run configurations, presets and the check of DeepSpeed's JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.errors import InputError
from trainers import config as run_config, ds_config, version
from trainers.config import LOSS_WEIGHTS, PARTS, DataConfig, OptimConfig, RunConfig, TrainConfig, with_settings
from trainers.presets import PRESETS, preset


def test_a_setting_is_typed_by_its_field() -> None:
    config = with_settings(
        RunConfig(),
        [
            "model.graph.width=64",
            "optim.lr=3e-4",
            "data.verify=false",
            "model.language.lora.targets=q_proj,k_proj",
            "loss_weights.graph/edges=0.5",
        ],
    )
    assert config.model.graph.width == 64
    assert config.optim.lr == pytest.approx(3e-4)
    assert config.data.verify is False
    assert config.model.language.lora.targets == ("q_proj", "k_proj")
    assert config.loss_weights["graph/edges"] == 0.5 and config.loss_weights["graph/kl"] == 0.1


def test_settings_apply_together_so_that_their_order_does_not_matter() -> None:
    settings = ["model.graph.width=90", "model.graph.heads=6"]  # 90 is no multiple of the 4 heads of the default
    assert with_settings(RunConfig(), settings) == with_settings(RunConfig(), settings[::-1])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("optim.lr", "expected section.field=value"),
        ("optim.learning_rte=1", "no field 'learning_rte'"),
        ("optim.lrr=1", "did you mean lr?"),
        ("model.grahp.width=1", "did you mean graph?"),
        ("model.graph=1", "is a section; set one of model.graph.width"),
        ("optim.lr.x=1", "lr is a value, not a section"),
        ("loss_weights.graph/edgse=1", "did you mean graph/edges?"),
        ("train.steps=ten", "expected int"),
        ("data.verify=perhaps", "expected true or false"),
        ("data.samples_per_rank=0", "data.samples_per_rank=0"),
        ("data.max_tokens=3", "data.max_tokens=3"),
        ("data.text_mode=some", "choose from"),
        ("optim.lr=0", "optim.lr=0.0"),
        ("optim.lr_warmup_steps=-1", "optim.lr_warmup_steps=-1"),
        ("optim.final_lr_share=2", "optim.final_lr_share=2.0"),
        ("optim.weight_decay=-1", "optim.weight_decay=-1.0"),
        ("optim.clip_norm=0", "optim.clip_norm=0.0"),
        ("optim.beta1=1", "optim.beta1=1.0"),
        ("optim.graph_lr_factor=-1", "optim.graph_lr_factor=-1.0"),
        ("train.part=all", "choose from"),
        ("train.engine=horovod", "choose from"),
        ("train.steps=0", "train.steps=0"),
        ("train.eval_batches=-1", "train.eval_batches=-1"),
        ("train.deadline_s=-1", "train.deadline_s=-1.0"),
        ("train.process_group_timeout_s=0", "train.process_group_timeout_s=0.0"),
        ("optim.lr=inf", "optim.lr=inf: must be a finite number"),
        ("model.climate.latent_dim=0", "model.climate.latent_dim=0"),
        ("model.spectrum.latent_dim=0", "model.spectrum.latent_dim=0"),
        ("model.language.latent_dim=0", "model.language.latent_dim=0"),
        ("loss_weights.graph/kl=inf", "loss_weights.graph/kl=inf: must be a finite number"),
        ("log.scalars_every_steps=0", "log.scalars_every_steps=0"),
        ("loss_weights.graph/kl=-1", "must be 0 or more"),
        ("data.graphs=folder", "only graph_vae trains on graphs alone"),
    ],
)
def test_a_wrong_setting_is_named_with_a_way_out(setting: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        with_settings(RunConfig(), [setting])
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"trian": {}}, "did you mean train?"),
        ({"train": 3}, "expected a table"),
        ({"train": {"steps": "3"}}, "config.train.steps='3': expected int"),
        ({"train": {"steps": True}}, "expected int"),
        ({"loss_weights": {"x": 1.0}}, "no such term"),
        ({"loss_weights": {"graph/kl": "1"}}, "loss_weights.graph/kl='1': expected float"),
    ],
)
def test_a_wrong_config_file_is_refused(table: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        run_config.from_dict(table)
    assert message in str(error.value)


def test_a_config_survives_its_file(tmp_path: Path) -> None:
    config = with_settings(preset("quickstart", "unified"), ["data.dir=somewhere", "loss_weights.text/ce=0.25"])
    run_config.write(config, tmp_path / "config.json")
    assert run_config.read(tmp_path / "config.json") == config


def test_a_config_file_that_is_missing_or_damaged_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        run_config.read(tmp_path / "config.json")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match="not JSON"):
        run_config.read(tmp_path / "config.json")


def test_a_run_of_another_version_names_that_version_the_field_and_the_way_out(tmp_path: Path) -> None:
    run = tmp_path / "my run"
    run.mkdir()
    path = run / "config.json"
    run_config.write(preset("quickstart", "cnn"), path)
    table = json.loads(path.read_text())
    assert table["written_by"] == version.this_version()
    table["model"]["graph"]["all_hidden"] = 0.4
    path.write_text(json.dumps({**table, "written_by": "Exobiome 0.1.0, commit e46a082 of 2026-11-28"}))
    with pytest.raises(InputError) as error:
        run_config.read(path)
    for told in (
        "config.model.graph.all_hidden: no such field; it was written by Exobiome 0.1.0, commit e46a082 of 2026-11-28",
        f"this is {version.this_version()}",
        f"./launch.sh train cnn --init-from {run} --out NEW",
    ):
        assert told in str(error.value)
    del table["written_by"]  # as runs were written until 2026-11-28
    path.write_text(json.dumps(table))
    with pytest.raises(InputError, match="all_hidden: no such field; it was written by an older version of Exobiome"):
        run_config.read(path)


def test_a_slip_of_the_pen_in_the_file_of_a_run_of_this_version_is_no_matter_of_versions(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    run_config.write(RunConfig(), path)
    path.write_text(path.read_text().replace('"encoder_layers"', '"encoder_layer"'))
    with pytest.raises(InputError) as error:
        run_config.read(path)
    assert str(error.value) == f"{path}: config.model.graph.encoder_layer: no such field; did you mean encoder_layers?"


def test_a_checkout_without_git_still_has_a_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    version.this_version.cache_clear()
    assert version.this_version().startswith("Exobiome") and "commit" not in version.this_version()
    version.this_version.cache_clear()


def test_differences_name_each_field() -> None:
    other = with_settings(RunConfig(), ["model.graph.width=64", "train.steps=7"])
    assert run_config.differences(RunConfig(), other) == ["model.graph.width: 96 != 64", "train.steps: 200 != 7"]


def test_the_default_weights_are_those_of_the_issue() -> None:
    groups = {name: weight for name, weight in LOSS_WEIGHTS.items()}
    assert groups["habitability/bce"] == 1.0
    assert groups["climate/recon"] == groups["spectrum/recon"] == groups["graph/edges"] == 0.1
    assert groups["graph/kl"] == groups["graph/recon"] == 0.1
    assert groups["physics/energy_balance"] == groups["physics/hydrostatic"] == 0.2
    assert groups["consistency/info_nce"] == groups["consistency/cross_recon"] == 0.15


@pytest.mark.parametrize("name", sorted(PRESETS))
@pytest.mark.parametrize("part", PARTS)
def test_every_preset_makes_a_config_for_every_part(name: str, part: str) -> None:
    assert preset(name, part).train.part == part


def test_an_unknown_preset_or_part_is_refused_with_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean quickstart"):
        preset("quikstart", "cnn")
    with pytest.raises(InputError, match="did you mean unified"):
        preset("quickstart", "unifed")


def test_the_configuration_imports_neither_torch_nor_deepspeed() -> None:
    code = (
        "import sys; import trainers.train, trainers.presets, trainers.ds_config; "
        "sys.exit(bool({'torch', 'deepspeed'} & set(sys.modules)))"
    )
    root = Path(__file__).resolve().parent.parent
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


@pytest.mark.parametrize("path", sorted(ds_config.FOLDER.glob("*.json")), ids=lambda p: p.name)
def test_every_shipped_deepspeed_file_is_accepted(path: Path) -> None:
    assert ds_config.read(path)["zero_optimization"]["stage"] == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"zero_optimisation": {}}, "did you mean zero_optimization?"),
        ({"zero_optimization": {"stage": 3, "overlap_com": True}}, "did you mean overlap_comm?"),
        ({"zero_optimization": {"stage": 2}}, "set 3"),
        ({"zero_optimization": {"stage": "auto"}}, "state a value"),
        ({"zero_optimization": 3}, "expected a table"),
        (
            {"zero_optimization": {
                "stage": 3, "stage3_allgather_sequential": True, "stage3_prefetch_bucket_size": 300_000_000
            }},
            "set it to 1",
        ),
        ({"train_batch_size": 8}, "--set data.samples_per_rank"),
        ({"optimizer": {}}, "--set optim.lr"),
    ],
)  # fmt: skip
def test_a_deepspeed_file_that_deepspeed_would_misread_is_refused(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "zero.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 3}, **change}))
    with pytest.raises(InputError) as error:
        ds_config.read(path)
    assert message in str(error.value)


def test_a_missing_or_damaged_deepspeed_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"zero3_cpu\.json"):
        ds_config.read(tmp_path / "none.json")
    for content, told in ((b"{", "not JSON"), (b"\x80", "not JSON"), (b"[]", "not a table")):
        (tmp_path / "zero.json").write_bytes(content)
        with pytest.raises(InputError, match=told):
            ds_config.read(tmp_path / "zero.json")
    with pytest.raises(InputError, match="Is a directory"):
        ds_config.read(tmp_path)


def test_batch_size_and_clipping_reach_deepspeed_from_the_config() -> None:
    config = RunConfig(
        data=DataConfig(samples_per_rank=4), train=TrainConfig(accumulation=3), optim=OptimConfig(clip_norm=0.7)
    )
    table = ds_config.complete({"zero_optimization": {"stage": 3}}, config, world=2)
    assert table["train_batch_size"] == 4 * 3 * 2 and table["gradient_accumulation_steps"] == 3
    assert table["gradient_clipping"] == 0.7


def test_the_deepspeed_file_follows_the_machine_unless_it_is_named() -> None:
    assert ds_config.path_of(RunConfig(), has_gpu=False).name == "zero3_cpu.json"
    assert ds_config.path_of(RunConfig(), has_gpu=True).name == "zero3.json"
    named = RunConfig(train=TrainConfig(ds_config="mine.json"))
    assert ds_config.path_of(named, has_gpu=True) == Path("mine.json")
    assert ds_config.offloads_optimizer(ds_config.read(ds_config.FOLDER / "zero3_offload.json"))
    assert not ds_config.offloads_optimizer(ds_config.read(ds_config.FOLDER / "zero3.json"))
