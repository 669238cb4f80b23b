"""Time the project's own hot paths, and fail where one takes longer than the baseline says.

    python3 -m benchmarks.hot_paths [--new-baseline] [--baseline FILE] [PYTEST OPTIONS]

Figures are not seconds: they count runs of a loop that is timed beside them, and so differ little between machines.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click
import pytest
from pytest_benchmark.session import PerformanceRegression

HERE = Path(__file__).parent
SLOWER_PERCENT = 50
OPTIONS = ("--benchmark-columns=median,iqr,min,max,rounds", "--benchmark-name=short", "--benchmark-sort=name")


@click.command(context_settings={"help_option_names": ["-h", "--help"], "ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[PYTEST OPTIONS]")
@click.option("--new-baseline", is_flag=True, help="Compare with nothing, and write the baseline anew.")
@click.option("--baseline", default=HERE / "baseline.json", type=click.Path(dir_okay=False, path_type=Path),
              metavar="FILE", help="Default: baseline.json beside the benchmarks.")  # fmt: skip
def command(arguments: tuple[str, ...], new_baseline: bool, baseline: Path) -> None:
    """Time the project's own hot paths, and fail where a median is more than half as long again as in the baseline."""
    if not (new_baseline or baseline.is_file()):
        raise click.UsageError(f"there is no baseline {baseline}: name another, or make it with --new-baseline")
    of_baseline = (
        (f"--benchmark-json={baseline}", "--benchmark-min-rounds=31")
        if new_baseline
        else (
            f"--benchmark-compare={baseline}",
            f"--benchmark-compare-fail=median:{SLOWER_PERCENT}%",
            "--benchmark-min-rounds=9",
        )
    )
    # A second thread waits for its core where others are busy. NumPy and Arrow read this when they are imported.
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        sys.exit(pytest.main([str(HERE), *OPTIONS, *of_baseline, *arguments]))
    except PerformanceRegression:
        fix = "find what makes it slow; or, if it has to be, write the baseline anew with --new-baseline"
        raise click.ClickException(f"a median is more than {SLOWER_PERCENT} % above the baseline: {fix}") from None


if __name__ == "__main__":
    command()
