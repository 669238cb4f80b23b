"""Ask a worker to predict the memory of cells; nothing is loaded, and no GPU is needed or touched."""

from __future__ import annotations

import os
import selectors
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.errors import BenchError, Location, Problem
from bench.matrix.expand import Cell
from bench.protocol import Question
from bench.run.executor import Ending, Message
from bench.run.local import WORKER_COMMAND, LocalWorker, worker_environment
from bench.run.slots import Slot
from bench.run.supervise import SIGNAL_HINTS, describe

PREDICT_COMMAND = (*WORKER_COMMAND, "predict")
TICK_S = 0.2  # how late the end of a worker that said nothing may be noticed


@dataclass(frozen=True)
class Prediction:
    """The measures named `predicted_*` of one cell.

    `note` says why its peak is a lower bound only, and `assumed` what was taken for granted of its texts.
    """

    measures: Mapping[str, int]
    note: str | None = None
    assumed: str | None = None


@dataclass(frozen=True)
class Refusal:
    """Why nothing can be predicted of one cell, and how to mend it."""

    message: str
    hint: str | None = None


Answer = Prediction | Refusal


def predictions(
    cells: Sequence[Cell],
    *,
    seeds: Sequence[int] = (0,),
    data_dir: Path | None = None,
    trust_remote_code: bool = False,
    tell: Callable[[int, str], None] = lambda number, cell_id: None,
    command: Sequence[str] | None = None,
) -> dict[str, Answer]:
    """Predict the memory of cells in one worker process; return an answer for each id, in the order of the cells.

    `data_dir` is where the texts of tasks lie (bench.cell.tasks.load_task), which with the seeds decide the largest
    batch of a cell.
    `tell` is called with the number, from 1, and the id of the cell that is worked on. `command` replaces
    `PREDICT_COMMAND` in tests. Whatever ends the call, Ctrl-C included, ends the worker.

    Raises:
        BenchError: the worker ended before it had answered for every cell; its last words are in it.
    """
    question = Question(
        [{"id": cell.id, "parameters": cell.parameters.model_dump(mode="json")} for cell in cells],
        list(seeds),
        str(data_dir.absolute()) if data_dir else None,
        trust_remote_code=trust_remote_code,
    )
    waiting = {cell.id for cell in cells}
    answers: dict[str, Answer] = {}
    current = cells[0].id
    with tempfile.TemporaryDirectory() as folder, selectors.DefaultSelector() as selector:
        environment = worker_environment(Slot("cpu"), os.environ)
        worker = LocalWorker(command or PREDICT_COMMAND, environment, Path(folder) / "worker.log", selector)
        try:
            tell(1, current)
            worker.take(question)
            while waiting:
                ending = worker.ending()  # asked first: what it said before its death is then all there
                for message in worker.messages():
                    cell_id, answer = message.get("id", ""), _answer(message)
                    if cell_id not in waiting:
                        continue
                    if message.get("kind") == "predicting":
                        current = cell_id
                        tell(len(answers) + 1, current)
                    elif answer:
                        waiting.remove(cell_id)
                        answers[cell_id] = answer
                if waiting and ending is not None:
                    raise BenchError([_died(current, ending)])
                if waiting:
                    selector.select(TICK_S)
        finally:
            worker.kill()
    return {cell.id: answers[cell.id] for cell in cells}


def refused(answers: Mapping[str, Answer], matrix: Path) -> list[Problem]:
    """Return why cells of a matrix were refused, each reason once, with the cells that it holds for."""
    ids: dict[Refusal, list[str]] = {}
    for cell_id, answer in answers.items():
        if isinstance(answer, Refusal):
            ids.setdefault(answer, []).append(cell_id)
    where = Location(str(matrix))
    return [Problem(f"{_some(found)}: {reason.message}", reason.hint, where) for reason, found in ids.items()]


def _some(ids: Sequence[str]) -> str:
    return ids[0] if len(ids) == 1 else f"{ids[0]} and {len(ids) - 1:,} more"


def _answer(message: Message) -> Answer | None:
    match message.get("kind"):
        case "prediction":
            return Prediction(message.get("measures") or {}, message.get("note"), message.get("assumed"))
        case "refusal":
            return Refusal(str(message.get("message")).removesuffix("."), message.get("hint"))
    return None


def _died(cell_id: str, ending: Ending) -> Problem:
    hint = SIGNAL_HINTS.get(-ending.returncode, "this is no fault of the matrix")
    words = "".join(f"\n  {line}" for line in ending.last_words)
    return Problem(
        f"the memory of {cell_id} was not predicted: {describe(ending.returncode)}",
        hint + (f"; the worker's last words:{words}" if words else ""),
    )
