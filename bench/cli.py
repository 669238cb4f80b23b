"""The command line, read from top to bottom as the pipeline: parameters, plan, run, tables."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from bench import __version__
from bench.errors import BenchError
from bench.matrix.cards import CARDS
from bench.matrix.expand import MOST_CELLS, load_matrix
from bench.matrix.limits import read_cards
from bench.matrix.plan import Plan, describe, plan
from bench.matrix.wording import again, counted
from bench.protocol import STATUSES, Status
from bench.run.seeds import MOST_SEEDS, extend, read_seeds, written_seeds

if TYPE_CHECKING:
    from rich.console import Console

    from bench.run.forecast import Answer

# Exit codes, beside 0: every cell ended as a result (running out of memory is a result). UNDECIDED: no recommendation.
CRASHED, WRONG, UNDECIDED, INTERRUPTED = 1, 2, 3, 130

matrix_argument = click.argument("matrix", type=click.Path(path_type=Path))
result_argument = click.argument("result", type=click.Path(path_type=Path))
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for a program to read.")
select_option = click.option("-k", "select", metavar="EXPR", help="Only cells whose id matches, as in pytest -k.")
seeds_option = click.option("--seeds", metavar="LIST", help="Seeds instead of the matrix's own: 0,1,2 or 0-4.")
trust_option = click.option(
    "--trust-remote-code", is_flag=True, help="Let models run code of their own (auto_map). Read that code first."
)
data_option = click.option(
    "--data", type=click.Path(path_type=Path), metavar="DIR",
    help="Where tasks lie, as DIR/banking77/train.csv. Default: $QLORA_BENCH_DATA, or the hub (plan: no hub).",
)  # fmt: skip
max_cells_option = click.option("--max-cells", default=MOST_CELLS, show_default=True, help="Refuse larger crosses.")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="qlora-bench")
def cli() -> None:
    """Which 4-bit settings should I fine-tune with on my GPU, and what does each one cost me?"""


@cli.command("params")
@click.option("--kernels", is_flag=True, help="Those of a matrix of kernels, which nox -s kernels runs.")
@json_option
def params_command(kernels: bool, as_json: bool) -> None:
    """List the parameters a matrix may set: type, default and meaning."""
    from bench.matrix.explain import rows
    from bench.matrix.kernel_vocabulary import KERNELS

    listed = rows(KERNELS) if kernels else rows()
    if as_json:
        click.echo(json.dumps([vars(row) for row in listed], indent=1))
        return
    from bench.tables.parameters import show_parameters

    show_parameters(listed, _console())


@cli.command("plan")
@matrix_argument
@select_option
@seeds_option
@max_cells_option
@click.option("--memory", is_flag=True, help="Predict the memory of each cell, without a GPU, and the cards it fits.")
@click.option("--card", "cards", multiple=True, metavar="NAME",
              help="With --memory: only this card, or a size such as 20GB; repeatable.")  # fmt: skip
@data_option
@trust_option
@json_option
def plan_command(
    matrix: Path, select: str | None, seeds: str | None, max_cells: int, memory: bool, cards: tuple[str, ...],
    data: Path | None, trust_remote_code: bool, as_json: bool,
) -> None:  # fmt: skip
    """Show the cells of MATRIX in the order in which they would run, and run nothing.

    With --memory: exits with 2 where nothing can be predicted of some cell, after what can be of the others.
    """
    given = {f"--card {' '.join(cards)}": cards, f"--data {data}": data, "--trust-remote-code": trust_remote_code}
    if idle := [option for option, value in given.items() if value and not memory]:
        raise BenchError(f"{idle[0]} says nothing without --memory: a plan reads no model and no task", "add --memory")
    chosen_cards = read_cards(cards) or tuple(CARDS.values())
    chosen = _plan(matrix, select, seeds, max_cells)
    if as_json and not memory:
        click.echo(json.dumps(describe(chosen), indent=1))
        return
    if as_json:
        from bench.tables.forecast import forecast_json

        answers = _answers(chosen, data, trust_remote_code)
        click.echo(json.dumps(forecast_json(chosen, answers, chosen_cards), indent=1))
        _exit_if_refused(answers)
        return
    click.echo(f"{chosen.matrix.name}: {chosen.matrix.about}")
    seeds_shown = ", ".join(map(str, chosen.seeds))
    click.echo(
        f"{counted(len(chosen.cells), 'cell')}, seed{'s' if len(chosen.seeds) > 1 else ''} {seeds_shown}: "
        f"{counted(len(chosen.jobs), 'run')}"
    )
    if memory:
        from bench.tables.forecast import show_forecast

        console = _console()
        answers = _answers(chosen, data, trust_remote_code, console)
        show_forecast(chosen, answers, chosen_cards, console)
        _exit_if_refused(answers)
        return
    baseline = chosen.matrix.baseline
    if baseline and baseline not in {cell.id for cell in chosen.cells}:
        click.echo(f"without the baseline, {baseline}: the tables will show no changes, unless it has a result already")
    for number, job in enumerate(chosen.jobs, start=1):
        drift = ", for drift" if job.repeat else ""
        note = f"  (baseline{again(job.repeat)}{drift})" if job.cell.id == baseline else ""
        click.echo(f"{number:4}  {job.cell.id}  seed {job.seed}{note}")


@cli.command("run")
@click.argument("matrices", nargs=-1, required=True, metavar="MATRIX...", type=click.Path(path_type=Path))
@select_option
@seeds_option
@max_cells_option
@click.option("--add-seeds", type=click.IntRange(1, MOST_SEEDS), metavar="N",
              help="Finish the seeds that a result has; once they are finished, add the next N.")  # fmt: skip
@click.option("--results", default="results", show_default=True, type=click.Path(path_type=Path), metavar="DIR",
              help="Where results go: into DIR/<name of the matrix>, and nowhere else.")  # fmt: skip
@data_option
@click.option("--gpus", default="all", show_default=True, metavar="LIST", help="GPUs to use: all, none (CPU), or 0,1.")
@click.option("--fresh", is_flag=True, help="Put earlier records aside and start over.")
@click.option("--retry", multiple=True, type=click.Choice(STATUSES), help="Run again what ended like this; repeatable.")
@trust_option
def run_command(
    matrices: tuple[Path, ...], select: str | None, seeds: str | None, max_cells: int, add_seeds: int | None,
    results: Path, data: Path | None, gpus: str, fresh: bool, retry: tuple[Status, ...], trust_remote_code: bool,
) -> NoReturn:  # fmt: skip
    """Run the cells of each MATRIX that have no result yet, and show the tables.

    Press Ctrl-C to stop; the same command goes on where it stopped (with --add-seeds, it is told which MATRIX to run
    with which --seeds instead). Exits with 0 if every cell has a result, of which oom and invalid are two, with 1 if
    one crashed, with 2 if the request is wrong, and with 130 if interrupted.
    """
    if add_seeds and (fresh or seeds is not None):
        other = "--fresh" if fresh else "--seeds"
        raise BenchError(f"--add-seeds goes on from the seeds that a result has, and {other} does not", "give one only")
    if add_seeds:
        plans = [_extended(path, select, max_cells, results, add_seeds) for path in matrices]
    else:
        plans = [_plan(path, select, seeds, max_cells) for path in matrices]
    if repeated := [name for name, count in Counter(chosen.matrix.name for chosen in plans).items() if count > 1]:
        raise BenchError(
            f"two matrices have the name {repeated[0]}", "rename one: results go into a folder of that name"
        )
    if results.exists() and not results.is_dir():
        raise BenchError(f"--results: {results} is not a folder", "name a folder; it need not exist yet")

    from bench.run.display import display
    from bench.run.engine import run_plan
    from bench.run.gpus import parse_gpus, visible_gpus
    from bench.run.slots import slots_for
    from bench.run.stop import stop_on_signals
    from bench.tables.render import results_at, show, write_tables

    slots = slots_for(parse_gpus(gpus, visible_gpus()))
    console, code = _console(), 0
    for chosen in plans:
        with display(console) as observer, stop_on_signals() as stop:
            summary = run_plan(
                chosen, results, slots=slots, data_dir=data, fresh=fresh, retry=retry,
                trust_remote_code=trust_remote_code, observer=observer, stop=stop,
            )  # fmt: skip
        if summary.records:
            found = results_at(summary.folder)
            write_tables(found)
            show(found, console)
        if summary.interrupted:
            console.print(_how_to_go_on(chosen, plans, add_seeds))
            sys.exit(INTERRUPTED)
        code = CRASHED if summary.count("crashed") else code
    sys.exit(code)


@cli.command("tables")
@result_argument
@json_option
def tables_command(result: Path, as_json: bool) -> None:
    """Show the tables of RESULT, what a run or kernel benchmarks have left, and write them into its folder."""
    from bench.tables.json import to_json
    from bench.tables.render import frame_at, results_at, show, write_tables

    if as_json:
        click.echo(to_json(frame_at(result)))
        return
    found = results_at(result)
    write_tables(found)
    show(found, _console())


@cli.command("recommend")
@result_argument
@click.option("--fits", metavar="NAME", help="Only cells that fit this card, or a size such as 20GB.")
@click.option("--quality-within", default="0.5pt", show_default=True, metavar="POINTS",
              help="How much less accuracy than the best cell's will do, in points.")  # fmt: skip
@json_option
def recommend_command(result: Path, fits: str | None, quality_within: str, as_json: bool) -> None:
    """Name the fastest cell of RESULT whose accuracy is as good as the best one's, and what would change the answer.

    Exits with 0 if there is an answer, with 3 if the evidence does not reach for one or no cell can be chosen, and with
    2 if the request is wrong.
    """
    from bench.tables.recommend import gather_one, read_limit, read_margin, recommend
    from bench.tables.recommend_text import show_recommendation, to_json

    margin, card = read_margin(quality_within), read_limit(fits) if fits is not None else None
    found = recommend(gather_one(result), card=card, margin=margin)
    if as_json:
        click.echo(to_json(found))
    else:
        show_recommendation(found, _console())
    if not found.answered:
        sys.exit(UNDECIDED)


def _answers(
    chosen: Plan, data: Path | None, trust_remote_code: bool, console: Console | None = None
) -> dict[str, Answer]:
    """Predict the memory of a plan's cells; on a terminal, a line tells how far it is.

    Raises:
        BenchError: nothing could be predicted of any cell.
    """
    from bench.run.forecast import Prediction, predictions, refused

    status = console.status("predicting") if console and console.is_interactive else None

    def tell(number: int, cell_id: str) -> None:
        if status:
            status.update(f"predicting {number} of {len(chosen.cells)}: {cell_id}")

    try:
        with status or nullcontext():
            answers = predictions(
                chosen.cells, seeds=chosen.seeds, data_dir=data, trust_remote_code=trust_remote_code, tell=tell
            )
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    if not any(isinstance(answer, Prediction) for answer in answers.values()):
        raise BenchError(refused(answers, chosen.matrix.path))
    return answers


def _exit_if_refused(answers: Mapping[str, Answer]) -> None:
    from bench.run.forecast import Refusal

    if any(isinstance(answer, Refusal) for answer in answers.values()):
        sys.exit(WRONG)


def _plan(path: Path, select: str | None, seeds: str | None, max_cells: int) -> Plan:
    return plan(load_matrix(path, max_cells), select, read_seeds(seeds) if seeds is not None else None)


def _extended(path: Path, select: str | None, max_cells: int, results: Path, count: int) -> Plan:
    """Plan a matrix with the seeds of its result and the next `count`, and say which these are."""
    matrix = load_matrix(path, max_cells)
    found = extend(matrix, results, count, select)
    if found.new:
        click.echo(f"{matrix.name}: adds seeds {written_seeds(found.new)} to {written_seeds(found.present)}")
    else:
        why = f"since some are unfinished ({written_seeds(found.unfinished)})"
        click.echo(f"{matrix.name}: adds no seeds yet, {why}: give the command again once this run is through")
    return plan(matrix, select, found.seeds)


def _how_to_go_on(chosen: Plan, plans: Sequence[Plan], add_seeds: int | None) -> str:
    if not add_seeds:
        return "interrupted: what was finished is kept, and the same command goes on from here"
    # The same --seeds would change those of the other matrices.
    name = f"{chosen.matrix.name}{', run alone,' if len(plans) > 1 else ''}"
    seeds = written_seeds(chosen.seeds)
    return f"interrupted: what was finished is kept; {name} goes on with --seeds {seeds} instead of --add-seeds"


def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False)


def main() -> None:
    """Run the command line; a user's mistake is told in a line each, and exits with 2."""
    try:
        cli()
    except BenchError as error:
        for problem in error.problems:
            click.echo(f"error: {problem}", err=True)
        sys.exit(WRONG)
