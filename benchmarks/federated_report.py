"""Tables, goals and pictures from the rows of `benchmarks.federated`, as they are kept under `benchmarks/results`.

`python -m benchmarks.federated_report robust|strategies FILE.csv` writes NAME-DATE.md, .csv and .svg.
"""

from __future__ import annotations

import argparse
import math
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import results
from benchmarks.contenders.processes import environment, started
from benchmarks.federated_tables import (
    BASELINES,
    CLEAN,
    DOORS,
    GOAL,
    GOAL_DOOR,
    GOAL_SUBTLE,
    SUBTLE,
    Cell,
    Key,
    cells,
    clean_of,
    grid,
    kept,
    label,
    markdown,
    order,
    rows_of,
)

SHARES = (0.2, 0.3, 0.4)
_CHART_SECONDS = 300.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the report; 0."""
    parser = argparse.ArgumentParser(prog="benchmarks.federated_report", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("kind", choices=("robust", "strategies"))
    parser.add_argument("table", type=Path)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args(arguments)
    rows = rows_of(options.table)
    text = (robust if options.kind == "robust" else strategies)(rows)
    day = datetime.now(UTC).date().isoformat()
    stem = options.output / f"{options.kind}-{day}"
    options.output.mkdir(parents=True, exist_ok=True)
    words = ", ".join(f"{key} {value}" for key, value in results.machine().items())
    stem.with_suffix(".md").write_text(f"# {options.kind}, {day}\n\n{words}\n\n{about(rows)}\n\n{text}\n")
    shutil.copyfile(options.table, stem.with_suffix(".csv"))
    _draw(options.kind, stem.with_suffix(".csv"), stem.with_suffix(".svg"))
    print(f"{text}\n\nwritten to {stem}.md")
    return 0


def _draw(kind: str, table: Path, picture: Path) -> None:
    """In an environment of its own. Raises `ContenderFailed`."""
    python = environment("chart") / "python"
    with tempfile.TemporaryDirectory() as folder, started(Path(folder)) as each:
        each.start("chart", [python, "-m", "benchmarks.federated_chart", kind, table, picture])
        each.wait_for(lambda: each.processes["chart"].poll() == 0, _CHART_SECONDS, ending={"chart"})


def about(rows: Sequence[Mapping[str, str]]) -> str:
    """What the runs have in common."""
    told = [
        (name, order(row[name] for row in rows))
        for name in ("data", "level", "rounds", "judged", "epochs", "batch", "rate", "balance", "seed")
    ]
    seconds = sum(float(row["seconds"]) for row in rows)
    words = "; ".join(f"{name}: {', '.join(values)}" for name, values in told)
    return f"{len(rows)} runs, {seconds / 60:.0f} minutes of one processor and what ran beside it. {words}."


def robust(rows: Sequence[Mapping[str, str]]) -> str:
    """Every rule under every attack: the goals first."""
    found, parts = cells(rows), []
    for split in order(row["split"] for row in rows):
        parts.append(f"## {split}: what is kept with a fifth of the hospitals hostile\n\n{_goals(found, split)}")
        for share in SHARES:
            shown = grid(found, split, share)
            for metric, words in (("balanced_accuracy", "balanced accuracy"), ("accuracy", "accuracy")):
                if shown.strategies:
                    table = _table(found, split, share, metric)
                    parts.append(f"## {split}: {words}, {share:.0%} hostile\n\n{table}")
        if (doors := _doors(found, split)) is not None:
            parts.append(f"## {split}: backdoor success\n\n{doors}")
        opened = grid(found, split, 0.2, screened=False)
        if opened.strategies:
            table = _table(found, split, 0.2, "balanced_accuracy", screened=False)
            words = "balanced accuracy, 20% hostile, without screening (number of rounds without a model in brackets)"
            parts.append(f"## {split}: {words}\n\n{table}")
    return "\n\n".join(parts)


def _goals(found: Mapping[Key, Cell], split: str) -> str:
    shown, lines = grid(found, split, 0.2), []
    for name in shown.strategies:
        keys = {attack: shown.keys[name, attack] for attack in shown.attacks if (name, attack) in shown.keys}
        shares = {attack: kept(found, key) for attack, key in keys.items()}
        others = {attack: share for attack, share in shares.items() if attack not in SUBTLE}
        worst = min(others, key=lambda attack: others[attack])
        subtle = [shares.get(attack, math.nan) for attack in SUBTLE]
        door = max((found[keys[each]].mean["backdoor"] for each in DOORS if each in keys), default=math.nan)
        clean = clean_of(found, next(iter(keys.values())))
        met = others[worst] >= GOAL and all(each >= GOAL_SUBTLE for each in subtle) and door <= GOAL_DOOR
        lines.append(
            [
                name,
                f"{clean.balanced:.3f}",
                f"{others[worst]:.0%} ({worst})",
                *(f"{each:.0%}" for each in subtle),
                f"{clean.mean['backdoor']:.1%}",
                f"{door:.1%}",
                "met" if met else "missed",
            ]
        )
    head = ["rule", "clean", "least kept, other attacks", "kept, ALIE", "kept, min-max", "backdoor, clean", "backdoor"]
    words = (
        f"Goal: at least {GOAL:.0%} of the rule's own clean balanced accuracy under every attack, {GOAL_SUBTLE:.0%} "
        f"under ALIE and min-max, backdoor success at most {GOAL_DOOR:.0%} (the larger of `backdoor`, `replacement`)."
    )
    return f"{words}\n\n{markdown([*head, 'goal'], lines)}"


def _table(found: Mapping[Key, Cell], split: str, share: float, metric: str, *, screened: bool = True) -> str:
    shown, lines = grid(found, split, share, screened=screened), []
    for name in shown.strategies:
        keys = [shown.keys.get((name, attack)) for attack in shown.attacks]
        clean = clean_of(found, next(key for key in keys if key is not None))
        values = [clean, *(None if key is None else found[key] for key in keys)]
        lines.append([name, *("" if each is None else _number(each, metric, screened) for each in values)])
    seeds = {attack: found[key].seeds for (_, attack), key in shown.keys.items()}
    most = max(seeds.values(), default=0)
    heads = [f"{attack}{'' if seeds[attack] == most else ' *'}" for attack in shown.attacks]
    few = f"\n\n\\* of fewer seeds than the other {most}, and not to be compared with `{CLEAN}` beside it."
    return markdown(["rule", CLEAN, *heads], lines) + (few if len(set(seeds.values())) > 1 else "")


def _number(cell: Cell, metric: str, screened: bool) -> str:
    lost = f" ({cell.mean['lost']:.0f})" if not screened and cell.mean["lost"] else ""
    return f"{cell.mean[metric]:.3f}{lost}"


def _doors(found: Mapping[Key, Cell], split: str) -> str | None:
    lines: dict[str, list[str]] = {}
    head = ["rule", "clean"]
    for share in SHARES:
        shown = grid(found, split, share)
        for attack in DOORS:
            if attack in shown.attacks:
                head.append(f"{attack} {share:.0%}")
                for name in shown.strategies:
                    key = shown.keys[name, attack]
                    clean = clean_of(found, key).mean["backdoor"]
                    lines.setdefault(name, [name, f"{clean:.1%}"]).append(f"{found[key].mean['backdoor']:.1%}")
    return markdown(head, lines.values()) if lines else None


def strategies(rows: Sequence[Mapping[str, str]]) -> str:
    """Every strategy beside pooled training, a table a head."""
    parts = []
    for level in order(row["level"] for row in rows):
        found = cells(row for row in rows if row["level"] == level)
        for split in order(key[0] for key in found):
            some = {key[1]: cell for key, cell in found.items() if key[0] == split}
            parts.append(f"## {split}, {level}\n\n{_beside(some)}")
    return "\n\n".join(parts)


def _beside(some: Mapping[str, Cell]) -> str:
    pooled = some.get("pooled")
    ranked = sorted(some, key=lambda name: (name not in BASELINES, -some[name].balanced))
    head = [
        "strategy",
        "rate",
        "seeds",
        "balanced accuracy",
        "±",
        "of pooled",
        "worst site",
        "±",
        "accuracy",
        "melanoma",
    ]
    lines = [
        [
            name,
            ", ".join(some[name].rates),
            str(some[name].seeds),
            f"{some[name].balanced:.3f}",
            f"{some[name].deviation['balanced_accuracy']:.3f}",
            "" if pooled is None else f"{some[name].balanced / pooled.balanced:.1%}",
            f"{some[name].mean['worst_site']:.3f}",
            f"{some[name].deviation['worst_site']:.3f}",
            f"{some[name].mean['accuracy']:.3f}",
            f"{some[name].mean['melanoma_recall']:.3f}",
        ]
        for name in ranked
    ]
    federated = [name for name in ranked if name not in BASELINES]
    if pooled is None or not federated:
        return markdown(head, lines)
    share = some[federated[0]].balanced / pooled.balanced
    goal = f"Goal: the best strategy reaches {GOAL:.0%} of pooled training. {label(federated[0])}: {share:.1%}, "
    return f"{goal}{'met' if share >= GOAL else 'missed'}.\n\n{markdown(head, lines)}"


if __name__ == "__main__":
    sys.exit(main())
