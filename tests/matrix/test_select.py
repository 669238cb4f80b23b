from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.errors import BenchError
from bench.matrix.expand import Cell
from bench.matrix.kernel_parameters import KernelParameters
from bench.matrix.kernels import Case
from bench.matrix.parameters import Parameters
from bench.matrix.select import select_cells

IDS = ["nf4-bf16", "nf4-fp16", "nf4-dq-bf16", "fp4-bf16", "lora_r=8-Qwen2.5-7B", "lr5e-4+x"]
CELLS = [Cell(name, "0" * 16, Parameters()) for name in IDS]
FIX = "write words of ids, joined by and, or, not and parentheses: 'nf4 and not fp16'"


def chosen(expression: str) -> list[str]:
    return [cell.id for cell in select_cells(CELLS, expression)]


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("nf4", IDS[:3]),
        ("NF4", IDS[:3]),
        ("qwen2.5-7b", IDS[4:5]),
        ("lora_r=8", IDS[4:5]),
        ("lr5e-4+x", IDS[5:]),
        ("nf4 and bf16", ["nf4-bf16", "nf4-dq-bf16"]),
        ("nf4 and not dq", IDS[:2]),
        ("not not dq", ["nf4-dq-bf16"]),
        ("dq or fp4 and fp16", ["nf4-dq-bf16"]),
        ("(dq or fp4) and bf16", ["nf4-dq-bf16", "fp4-bf16"]),
        ("not (nf4 or fp4)", IDS[4:]),
        ("nf4 AND NOT(bf16)", ["nf4-fp16"]),
        ("((fp4))", ["fp4-bf16"]),
        ("not " * 2000 + "dq", ["nf4-dq-bf16"]),
        (" or ".join(["dq"] * 2000), ["nf4-dq-bf16"]),
    ],
)
def test_words_select_by_their_letters_joined_as_in_pytest(expression: str, expected: list[str]) -> None:
    assert chosen(expression) == expected


@pytest.mark.parametrize(
    ("expression", "why"),
    [
        ("", "it ends where a word is expected"),
        ("nf4 and", "it ends where a word is expected"),
        ("not", "it ends where a word is expected"),
        ("and nf4", "'and' stands where a word is expected"),
        ("()", "')' stands where a word is expected"),
        ("(nf4", "a ( is not closed"),
        ("(nf4 bf16)", "a ( is not closed"),
        ("nf4)", "a ) has no ("),
        ("nf4 bf16", "'bf16' needs and or or before it"),
        ("nf4 or 'bf16'", '"\'" is in no id'),
        ("nf4 & bf16", "'&' needs and or or before it"),
        ("(" * 60 + "a" + ")" * 60, "parentheses are nested more than 50 deep"),
    ],
)
def test_an_expression_that_cannot_be_read_says_why(expression: str, why: str) -> None:
    with pytest.raises(BenchError) as caught:
        chosen(expression)
    (problem,) = caught.value.problems
    assert problem.what.startswith("-k ")
    assert problem.what.endswith(f" cannot be read: {why}")
    assert problem.fix == FIX


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("nf5", "-k 'nf5' selects none of 6 cells; did you mean nf4?"),
        ("nf4-bf15", "-k 'nf4-bf15' selects none of 6 cells; did you mean nf4-bf16?"),
        (
            "nf4 and fp4",
            "-k 'nf4 and fp4' selects none of 6 cells; "
            "the ids are nf4-bf16, nf4-fp16, nf4-dq-bf16, fp4-bf16, lora_r=8-Qwen2.5-7B, …",
        ),
    ],
)
def test_an_expression_that_selects_nothing_says_what_there_is(expression: str, message: str) -> None:
    with pytest.raises(BenchError) as caught:
        chosen(expression)
    assert str(caught.value) == message


def test_cases_are_selected_like_cells() -> None:
    cases = [Case(f"forward-q_proj-nf4-{rows}-r0", "0" * 16, KernelParameters(rows=rows)) for rows in (4, 64, 4096)]
    assert select_cells(cases, "-4-r") == (cases[0],)
    assert select_cells(cases, "4-r or 4096") == tuple(cases)
    with pytest.raises(BenchError) as caught:
        select_cells(cases, "nf5", noun="case")
    assert str(caught.value) == "-k 'nf5' selects none of 3 cases; did you mean nf4?"


@given(st.text(alphabet="()andortfx416- &'", max_size=30))
def test_whatever_the_expression_only_bench_errors_come_out(expression: str) -> None:
    try:
        outcome: object = chosen(expression)
    except BenchError as error:
        outcome = error.problems[0].fix
    assert outcome


TREES = st.recursive(
    st.sampled_from(["nf4", "bf16", "dq", "x", "zzz"]),
    lambda inner: st.tuples(st.just("not"), inner) | st.tuples(st.sampled_from(["and", "or"]), inner, inner),
    max_leaves=8,
)


def expression_of(tree) -> str:
    if isinstance(tree, str):
        return tree
    if tree[0] == "not":
        return f"not ({expression_of(tree[1])})"
    return f"({expression_of(tree[1])}) {tree[0]} ({expression_of(tree[2])})"


def truth_of(tree, name: str) -> bool:
    if isinstance(tree, str):
        return tree in name
    if tree[0] == "not":
        return not truth_of(tree[1], name)
    return (all if tree[0] == "and" else any)(truth_of(branch, name) for branch in tree[1:])


@given(TREES)
def test_an_expression_means_what_logic_says(tree) -> None:
    expected = [name for name in IDS if truth_of(tree, name.lower())]
    if expected:
        assert chosen(expression_of(tree)) == expected
    else:
        with pytest.raises(BenchError):
            chosen(expression_of(tree))
