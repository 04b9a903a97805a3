"""The command `easydistill sweep`: does what its arguments say, and prints what came of it."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

from easydistill.engine.stage import PlannedStage, total_of
from easydistill.errors import EXIT_OK
from easydistill.sweeping.plan import PlannedVariant
from easydistill.sweeping.sweep import Sweep, check_metric
from easydistill.sweeping.variants import read_list, variants_of


def sweep(config: str, arguments: argparse.Namespace) -> int:
    """Returns the exit code: 0, 1 if a variant failed, 3 if one has more rejected rows than allowed.

    Raises what `Sweep` and `Sweep.run` raise.
    """
    check_metric(arguments.by)
    listed = read_list(arguments.listed) if arguments.listed is not None else []
    variants = variants_of(arguments.grid, listed, most=arguments.random, seed=arguments.seed)
    made = Sweep(config, variants, arguments.overrides, arguments.output)
    if arguments.dry_run:
        print("\n".join(plan_lines(made)))
        return EXIT_OK

    def say(text: str) -> None:
        if not arguments.quiet:
            print(text, flush=True)

    result = made.run(by=arguments.by, quiet=arguments.quiet, replace=arguments.replace, say=say)
    print("\n".join(result.lines), flush=True)
    return result.exit_code


def plan_lines(made: Sweep) -> list[str]:
    """The variants of a sweep, and what each would take."""
    found = made.plan()
    many = "1 variant" if len(found) == 1 else f"{len(found)} variants"
    lines = [f"{many} in {made.directory}, answers and signals in {made.cache}"]
    for variant in found:
        lines.append(variant.name)
        lines += [f"  {line}" for line in _stage_lines(variant)]
    total = total_of([stage for variant in found for stage in variant.paid()])
    if total.calls is not None:
        cost = "" if total.cost is None else f", cost {total.cost[0]:,.4g} to {total.cost[1]:,.4g}"
        lines.append(f"in all: at most {total.calls:,} calls{cost}")
    return lines


def _stage_lines(variant: PlannedVariant) -> Iterator[str]:
    for stage in variant.stages:
        payer = variant.shared.get(stage.name)
        if stage.state == "done":
            yield f"{stage.name}: done"
        elif payer is not None:
            yield f"{stage.name}: takes what {payer} has paid for"
        else:
            yield f"{stage.name}: {stage.state}{_calls([stage])}"


def _calls(stages: Sequence[PlannedStage]) -> str:
    calls = sum(stage.estimate.calls_at_most or stage.estimate.calls or 0 for stage in stages)
    return f", {calls:,} calls" if calls else ""
