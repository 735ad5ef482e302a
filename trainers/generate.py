"""Generate metabolic networks for an environment or a planet. `./launch.sh generate RUN --planet NAME --out DIR`.

One NPZ and one GraphML file a network, and report.json with what was checked about each.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_pipeline import assemble, graph_files, habitat, planets, reaction_db, text
from data_pipeline.batch import MODALITIES, OBSERVABLE, Sample
from data_pipeline.collate import collate
from data_pipeline.environment import parse_environment
from data_pipeline.errors import InputError, one_line
from data_pipeline.order import generator
from data_pipeline.variables import ENVIRONMENT
from models.language import load_tokenizer
from models.objectives import UnifiedObjective
from trainers import calibration, checkpoint, oracle
from trainers.config import RunConfig
from trainers.evaluate import find_run, plain
from trainers.networks import ROUNDS, Network, draw, draw_guided, find_graph_vae

PARTS = ("unified", "graph_vae")


def generate(
    run: Path,
    out: Path,
    count: int,
    seed: int,
    environment_text: str | None = None,
    planet_name: str | None = None,
    guided: bool = False,
    distinct: bool = False,
) -> dict[str, Any]:
    """Write `count` networks and report.json into `out`; return the report.

    Args:
        guided: Draw more, and keep those with which the organisms of the environment make the most ATP (draw_guided).
        distinct: Keep each of them once; of guided networks alone.

    Raises:
        InputError: The run, environment, planet, count or folder is not one that can be used.
    """
    if count < 1:
        raise InputError(f"--count {count}: must be at least 1")
    if not 0 <= seed < 2**63:
        raise InputError(f"--seed {seed}: must be 0 or more, and below 2^63")
    if distinct and not guided:
        raise InputError("--distinct: picks among guided networks; add --guided")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"--out {out}: not an empty folder; give a new or empty one")
    sample = None
    if planet_name is None:
        environment = parse_environment(environment_text or "")
    else:
        planet = planets.find_planet(planet_name)
        sample = assemble.observe([planet], [planet.name], "test", seed)[0]
        environment = sample.environment
        if sample.facts["liquid_water_share"] <= 0:
            raise InputError(
                f"--planet {planet.name}: its surface has no liquid water in this climate, so no organism known here "
                "lives there; give another planet or an --environment"
            )
    objective, config, chemistry = checkpoint.load_model(run)
    if config.train.part not in PARTS:
        raise InputError(f"run={run}: a {config.train.part} run has no graph VAE; give a {' or '.join(PARTS)} run")
    if config.data.graphs:
        raise InputError(
            f"run={run}: trained on {config.data.graphs}, whose nodes are no metabolites; nothing to judge by"
        )
    objective.to("cuda" if torch.cuda.is_available() else "cpu").eval()

    nutrients = habitat.nutrients(environment)

    model, asked = find_graph_vae(objective), np.repeat(environment[None], count, axis=0)
    if guided:
        networks = draw_guided(model, chemistry.metabolites, asked, seed, distinct)
    else:
        networks = draw(model, chemistry.metabolites, asked, seed)
    makes = oracle.most_atp([oracle.Question(n.edges, nutrients) for n in networks])
    report: dict[str, Any] = {
        "run": str(run),
        "seed": seed,
        "environment": {v.name: float(x) for v, x in zip(ENVIRONMENT, environment, strict=True)},
        "environment_units": {v.name: v.unit for v in ENVIRONMENT},
        "nutrients": list(nutrients),
        "organisms_that_stand_the_conditions": habitat.viable_organisms(environment),
        "organisms_that_make_atp": [p[0] for p in assemble.inhabitants(environment) if assemble.solve(p) is not None],
    }
    if sample is not None:
        report["planet"] = {"name": sample.name, "facts": sample.facts}
        if isinstance(objective, UnifiedObjective):
            report["planet"] |= judge(objective, config, sample, calibration.load(run, "unified_observable"))
    out.mkdir(parents=True, exist_ok=True)
    report["networks"] = [
        write(out, number, network, nutrients, environment, atp)
        for number, (network, atp) in enumerate(zip(networks, makes, strict=True))
    ]
    report["summary"] = {
        "networks": count,
        "drawn": count * ROUNDS if guided else count,
        "distinct": len({n.edges for n in networks}),
        "edge_precision": oracle.edge_precision([n.edges for n in networks]),
        "atp_feasible": float(np.mean([bool(atp) for atp in makes])),
    }
    (out / "report.json").write_text(json.dumps(plain(report), indent=2) + "\n")
    return report


@torch.no_grad()
def judge(
    objective: UnifiedObjective, config: RunConfig, sample: Sample, calibrated: calibration.Calibration | None
) -> dict[str, Any]:
    """Return what the unified model says of a planet from what a telescope sees: probability, question and answer.

    The answer begins with the word that the probability calls for, and the language model gives the reason. Left to
    itself after some hundred steps it says Yes or No as it likes, whatever the habitability head found.
    """
    tokenizer = load_tokenizer(config.model.language)
    description = text.description(sample, True, generator("text", 0, sample.sample_id))
    strings = (description, text.WHETHER_HABITABLE, "")
    written = replace(sample, text=text.encode(strings, tokenizer, config.data.max_tokens))
    batch = collate([written]).keep(*OBSERVABLE)
    batch = replace(batch, visible=batch.present).to(next(objective.parameters()).device)
    outputs = objective(batch).outputs
    logit = outputs["habitability_logit"].double().cpu().numpy()
    probability = float((calibrated or calibration.Calibration()).probability(logit)[0])
    begin = tokenizer(text.verdict(probability >= 0.5), add_special_tokens=False)["input_ids"]
    answer = objective.explain(batch, tokenizer.eos_token_id, begin=[begin])[0]
    return {
        "habitability_probability": probability,
        "calibrated": calibrated is not None,
        "gates": dict(zip(MODALITIES, outputs["gates"][0].tolist(), strict=True)),
        "description": description,
        "question": text.WHETHER_HABITABLE,
        "explanation": str(tokenizer.decode(answer)).strip(),
    }


def write(
    out: Path,
    number: int,
    network: Network,
    nutrients: tuple[str, ...],
    environment: np.ndarray,
    atp: dict[str, float],
) -> dict[str, Any]:
    """Write one network as NPZ and GraphML; return its line of the report.

    Args:
        atp: What known organisms make with it, in mmol per gram and hour.
    """
    graph = reaction_db.graph_of_edges(sorted(network.edges), nutrients)
    name = f"network_{number:03d}"
    graph_files.write_npz(out / f"{name}.npz", graph, environment)
    graph_files.write_graphml(out / f"{name}.graphml", graph)
    return {
        "file": f"{name}.npz",
        "metabolites": len(network.metabolites),
        "edges": len(network.edges),
        "edge_precision": oracle.edge_precision([network.edges]),
        "mean_edge_standard_deviation": float(network.edge_std.mean()) if len(network.edge_std) else 0.0,
        "atp_feasible": bool(atp),
        "atp_mmol_g_h": {organism: round(most, 3) for organism, most in atp.items()},
    }


@one_line
def main(argv: list[str] | None = None) -> int:
    """Generate from the command line; bad input is one line and exit code 2."""
    parser = argparse.ArgumentParser(prog="./launch.sh generate", description=__doc__)
    parser.add_argument(
        "run", type=Path, metavar="RUN", help="folder of a unified or graph_vae run, or of a quickstart"
    )
    wanted = parser.add_mutually_exclusive_group(required=True)
    wanted.add_argument(
        "--environment", metavar="NAME=VALUE,...", help="such as temperature_k=350,ph=6.5,o2=0,redox=-0.3"
    )
    wanted.add_argument("--planet", metavar="NAME|FILE", help="a known planet, or a JSON or archive CSV file of one")
    parser.add_argument("--count", type=int, default=16, help="default: %(default)s")
    parser.add_argument("--out", type=Path, required=True, help="a new or empty folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--guided",
        action="store_true",
        help=f"draw {ROUNDS} times as many; the known organisms that stand the conditions take turns to pick the one "
        "with which they make the most ATP",
    )
    parser.add_argument(
        "--distinct",
        action="store_true",
        help="of guided networks: pick each once (a first draw that nobody replaces may repeat)",
    )
    options = parser.parse_args(argv)
    report = generate(
        find_run(options.run),
        options.out,
        options.count,
        options.seed,
        options.environment,
        options.planet,
        options.guided,
        options.distinct,
    )
    if "planet" in report:
        planet = report["planet"]
        print(f"{planet['name']}: {planet['facts']['liquid_water_share']:.0%} of the surface has liquid water")
        if "explanation" in planet:
            print(f"habitable with probability {planet['habitability_probability']:.2f}: {planet['explanation']}")
            if not planet["calibrated"]:
                print("(not calibrated yet: ./launch.sh evaluate RUN does it on held-out planets)")
    living = report["organisms_that_make_atp"]
    print(f"nutrients: {', '.join(report['nutrients'])}; {len(living)} known organisms make ATP there")
    if not living:
        print("no network that is drawn can be expected to: try another planet or environment")
    summary = report["summary"]
    print(
        f"{summary['networks']} networks in {options.out}, {summary['distinct']} distinct, of {summary['drawn']} "
        f"drawn; edges in the reaction DB {summary['edge_precision']:.0%}, "
        f"ATP feasible {summary['atp_feasible']:.0%}; report.json says more of each"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
