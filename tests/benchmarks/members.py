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
from ensemble.decision.assessment import Candidate, assess
from ensemble.decision.cross_fitting import OofLogits, cross_fit, stack
from ensemble.decision.rates import error_rates
from ensemble.progress import say
from ensemble.reports.table import Table
from ensemble.runs.run import Run


def main(folder: Path) -> None:
    run = Run(folder)
    decision, seed = read_decisions(run, say).tta, run.read().seed
    names, kind, objective = decision.stacker.members, decision.kind, decision.objective
    oof = averaged_oof(run, names, decision.views)
    alone = {name: cross_fit(_of(oof, [name]).rows, stack(kind), objective).y_pred for name in names}
    best_first = sorted(names, key=lambda name: error_rates(oof.labels, alone[name]).hter)
    sets = {"all": list(names)}
    sets |= {f"without {name}": [other for other in names if other != name] for name in names if len(names) > 1}
    sets |= {f"the best {k}: {', '.join(best_first[:k])}": best_first[:k] for k in range(1, len(names))}
    rows = []
    stacks = [Candidate.of(name, _of(oof, members), stack(kind), objective) for name, members in sets.items()]
    for assessed in assess(stacks, oof.groups, seed):  # the first is the stack of all
        difference = assessed.difference
        rows.append(
            (
                assessed.name,
                f"{assessed.nested.hter:.4f}",
                f"{assessed.interval.low:.4f} to {assessed.interval.high:.4f}",
                f"{difference.value:+.4f}" if difference else "",
                f"{difference.interval.low:+.4f} to {difference.interval.high:+.4f}" if difference else "",
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
