"""`python -m bench.cell`: the worker of one cell. Reads a request on standard input, answers with JSON lines.

Started by `bench.run`; by hand it is useful to debug a cell: `python -m bench.cell < request.json`. With the argument
`predict` it reads a question instead, and predicts the memory of its cells. A worker itself starts it with the
arguments `reference FILE`, to have the 16-bit model's answers written there.
"""

from __future__ import annotations

import sys
from pathlib import Path

from bench.cell.channel import open_channel
from bench.protocol import Question, Request


def main() -> None:
    send = open_channel()
    # Seconds of imports come first, so that a run can start a worker before it has a request for it.
    if sys.argv[1:] == ["predict"]:
        from bench.cell.prediction import answer

        answer(Question.from_json(sys.stdin.read()), send)
    elif sys.argv[1:2] == ["reference"]:
        from bench.cell.reference import answer as answer_in_16_bits

        answer_in_16_bits(Request.from_json(sys.stdin.read()), Path(sys.argv[2]), send)
    else:
        from bench.cell.worker import work

        work(Request.from_json(sys.stdin.read()), send)


if __name__ == "__main__":
    main()
