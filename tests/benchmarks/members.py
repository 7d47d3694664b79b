"""Measure how much each member contributes to the stack.

    python tests/benchmarks/members.py --run checkpoints/therapanacea

The script fits stacks of the deployed kind without each member in turn, and of the best one, two, … members, with the
views identity + hflip. It prints the nested HTER of each stack with its interval, and the paired difference to the
stack of all members. The best members are chosen on the same rows; the intervals do not include this choice.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ensemble.commands.fit_stacker import averaged_oof, read_decisions
from ensemble.decision.assessment import assess
from ensemble.decision.cross_fitting import OofLogits, cross_fit, stack
from ensemble.progress import say
from ensemble.reports.table import Table
from ensemble.runs.run import Run


def main(folder: Path) -> None:
    run = Run(folder)
    decision, seed = read_decisions(run, say).tta, run.read().seed
    names, kind, objective = decision.stacker.members, decision.kind, decision.objective
    oof = averaged_oof(run, names, decision.views)
    whole = cross_fit(oof.rows, stack(kind), objective).y_pred
    alone = {name: assess(name, _of(oof, [name]), stack("mean"), objective, seed).nested.hter for name in names}
    best_first = sorted(names, key=lambda name: alone[name])
    sets = {"all": list(names)}
    sets |= {f"without {name}": [other for other in names if other != name] for name in names if len(names) > 1}
    sets |= {f"the best {k}: {', '.join(best_first[:k])}": best_first[:k] for k in range(1, len(names))}
    rows = []
    for stack_name, members in sets.items():
        assessed = assess(stack_name, _of(oof, members), stack(kind), objective, seed, stacked=whole)
        assert assessed.difference is not None
        value, interval = assessed.difference.value, assessed.difference.interval
        rows.append(
            (
                stack_name,
                f"{assessed.nested.hter:.4f}",
                f"{assessed.interval.low:.4f} to {assessed.interval.high:.4f}",
                "" if stack_name == "all" else f"{value:+.4f}",
                "" if stack_name == "all" else f"{interval.low:+.4f} to {interval.high:+.4f}",
            )
        )
    shown = Table(
        f"Stacks of fewer members, {kind}",
        ("stack", "HTER, nested", "95 % interval", "minus all members'", "95 % interval, paired"),
        tuple(rows),
    )
    print(shown.markdown(), end="")


def _of(oof: OofLogits, members: Sequence[str]) -> OofLogits:
    columns = [oof.members.index(name) for name in members]
    return replace(oof, members=tuple(members), logits=oof.logits[:, columns])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    main(parser.parse_args().run)
