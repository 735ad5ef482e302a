"""Print metrics.json as a table that says where the network loses to a baseline."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

HABITABILITY = {
    "unified_observable": "unified, observables only",
    "unified": "unified, all modalities",
    "hz_rule": "(a) habitable-zone rule",
    "gradient_boosting": "(b) boosted trees, planet parameters",
    "gradient_boosting_with_spectrum": "(b') boosted trees, parameters + spectrum",
    "gradient_boosting_with_features": '(b") boosted trees, parameters + bands read off',
    "climate": "(c) climate cube alone",
    "spectrum": "(c) spectrum alone",
    "graph": "(c) metabolic network alone",
    "text": "(c) text alone",
}
GENERATION = {
    "unified": "unified",
    "nearest_neighbour": "(d) nearest neighbour in environment",
    "untrained": "(e) untrained decoder",
    "real": "the real networks",
}
# What each row is fairly compared with: what a telescope sees against what a telescope sees.
RIVALS = {
    "unified_observable": (
        "hz_rule",
        "gradient_boosting",
        "gradient_boosting_with_spectrum",
        "gradient_boosting_with_features",
        "spectrum",
        "text",
    ),
    "unified": ("hz_rule", "gradient_boosting", "climate", "spectrum", "graph", "text"),
}
HIGHER_IS_BETTER = {"auroc": True, "brier": False, "ece": False}
SHARES = ("edge_precision", "atp_feasible", "unique", "novel")


def _lost(mine: float | None, other: float | None, higher_is_better: bool) -> bool:
    return mine is not None and other is not None and (mine < other if higher_is_better else mine > other)


def _cell(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def losses(metrics: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each number in which the network is worse than a baseline."""
    habitability, generation = metrics["habitability"], metrics["generation"]
    for row, rivals in RIVALS.items():
        for rival in rivals:
            if row not in habitability or rival not in habitability:
                continue
            for score, higher in HIGHER_IS_BETTER.items():
                mine, other = habitability[row][score], habitability[rival][score]
                if _lost(mine, other, higher):
                    yield f"{HABITABILITY[row]} loses to {HABITABILITY[rival]}: {score} {mine:.3f} against {other:.3f}"
    for rival in ("nearest_neighbour", "untrained"):
        for score in SHARES:
            mine, other = generation["unified"].get(score), generation[rival].get(score)
            if _lost(mine, other, True):
                yield f"generation: unified loses to {GENERATION[rival]}: {score} {mine:.3f} against {other:.3f}"


def table(metrics: Mapping[str, Any]) -> str:
    """Return the whole table; its last lines say where the network loses, or that it does nowhere. None is "-"."""
    lines = []
    data, habitability, generation = metrics["data"], metrics["habitability"], metrics["generation"]
    lines.append(
        f"Data: {data['planets']} planets, {data['distinct_networks']} distinct networks, edge distance with and "
        f"without O2 {_cell(data['o2_edge_distance'], 2)}, "
        f"systems shared between splits {data['systems_shared_between_splits']}"
    )
    lines.append(
        f"\nIs it habitable? {metrics['split']}: {metrics['judged']['planets']} planets, "
        f"{metrics['judged']['habitable_share']:.0%} habitable; every row calibrated on {metrics['calibrated_on']}"
    )
    lines.append(f"{'':42} {'AUROC':>6} {'95 %':>13} {'Brier':>6} {'ECE':>6}")
    for row, label in HABITABILITY.items():
        if row in habitability:
            s = habitability[row]
            interval = f"{_cell(s['auroc_low'])}-{_cell(s['auroc_high'])}"
            auroc, brier, ece = (_cell(s[name]) for name in HIGHER_IS_BETTER)
            lines.append(f"{label:42} {auroc:>6} {interval:>13} {brier:>6} {ece:>6}")
    lines.append(f"\nWhich metabolism? {metrics['judged']['networks']} environments, one network each; shares")
    lines.append(f"{'':42} {'edges in DB':>11} {'ATP':>6} {'unique':>7} {'novel':>6}")
    for row, label in GENERATION.items():
        s = generation[row]
        shown = [_cell(s.get(name)) for name in SHARES]
        lines.append(f"{label:42} {shown[0]:>11} {shown[1]:>6} {shown[2]:>7} {shown[3]:>6}")
    own, shuffled = generation["unified"]["atp_feasible"], generation["unified"]["atp_feasible_shuffled_environment"]
    lines.append(f"unified, environments shuffled: ATP {_cell(shuffled)} against {_cell(own)} with their own")
    edges = [_cell(generation["unified"][name]) for name in ("edge_ece", "edge_brier", "edge_brier_of_frequencies")]
    lines.append(f"edges: calibration error {edges[0]}, Brier {edges[1]} ({edges[2]} by their frequency in training)")
    lines.append("")
    lines += list(losses(metrics)) or ["The network loses to no baseline in any of these numbers."]
    return "\n".join(lines)
