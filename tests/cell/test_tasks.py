from __future__ import annotations

import csv
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from bench.cell import tasks
from bench.cell.failures import Invalid
from bench.cell.tasks import Example, load_task, read_csv, subset
from bench.matrix.tasks import TASKS

HOSTILE = "He said \"now\",\r\nthen\nnothing; naïve — 東京 🙂, 'ok'\t."


@pytest.fixture(autouse=True)
def _no_data_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QLORA_BENCH_DATA", raising=False)


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def folder(root: Path, train: str = "text,label\na,x\nb,y\n", test: str = "text,label\nc,x\n") -> Path:
    write(root / "train.csv", train)
    write(root / "test.csv", test)
    return root


def refusal(path: Path) -> Invalid:
    with pytest.raises(Invalid) as caught:
        read_csv(path)
    assert caught.value.fix
    return caught.value


# Files ----------------------------------------------------------------------------------------------------------------


def test_texts_with_quotes_newlines_and_commas_come_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["text", "label"], [HOSTILE, "a"], ["", "b"], ["plain", "ä ß"]])

    assert read_csv(path) == (Example(0, HOSTILE, "a"), Example(1, "", "b"), Example(2, "plain", "ä ß"))


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=5))
def test_any_text_that_was_written_as_csv_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str]
) -> None:
    path = tmp_path_factory.mktemp("any") / "train.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows([["text", "label"], *([text, "x"] for text in texts)])

    assert [example.text for example in read_csv(path)] == texts


@pytest.mark.parametrize("header", ["text,label", "text,category", "label,text", "id,text,intent", "text,label_text"])
def test_columns_are_found_by_their_names(tmp_path: Path, header: str) -> None:
    row = ["where?" if name == "text" else "lost" for name in header.split(",")]

    assert read_csv(write(tmp_path / "a.csv", f"{header}\n{','.join(row)}\n")) == (Example(0, "where?", "lost"),)


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbftext,label\nhi,x\n",
        b"text,label\r\nhi,x\r\n",
        b"text,label\nhi, x \n",
        b"text,label\n\nhi,x\n\n",
        b"text,label\nhi,x",
        b'"text","label"\n"hi","x"\n',
    ],
    ids=["byte order mark", "CRLF", "spaces around the label", "blank lines", "no last newline", "all quoted"],
)
def test_the_ways_that_editors_and_spreadsheets_write_csv_read_the_same(tmp_path: Path, content: bytes) -> None:
    assert read_csv(write(tmp_path / "a.csv", content)) == (Example(0, "hi", "x"),)


@pytest.mark.parametrize(
    ("content", "place", "words"),
    [
        ("text,label\na,x\nb,c,y\n", ":3", "another number of fields than the header's 2"),
        ("text,label\na,x\nb\n", ":3", "another number of fields than the header's 2"),
        ('text,label\n"two\nlines",x\nb\n', ":4", "another number of fields"),
        ("text,label\na,x\nb, \n", ":3", "a row without a label"),
        ("text,category\na,\n", ":2", "a row without a category"),
        ("query,label\na,x\n", ":1", "no column text; it has 'query', 'label'"),
        ("text,class\na,x\n", ":1", "no column label_text or label or category or intent"),
        ("text;label\na;x\n", ":1", "no column text"),
        ("", ":1", "no column text; it has none"),
        ("text,label\n", "", "holds no examples"),
        ('text,label\na,x\n"never closed,y\n', ":3", "unexpected end of data"),
        ("text,label\na,x\nb\xff,y\n".encode("latin-1"), ":3", "not UTF-8"),
        ("text,label\na,x\n".encode("utf-16"), ":1", "not UTF-8"),
    ],
)
def test_a_file_that_cannot_be_understood_is_refused_with_its_place(
    tmp_path: Path, content: str | bytes, place: str, words: str
) -> None:
    path = write(tmp_path / "train.csv", content)

    problem = refusal(path)

    assert str(problem).startswith(f"{path}{place}")
    assert words in str(problem)


def test_a_missing_file_is_refused_by_its_name(tmp_path: Path) -> None:
    assert str(refusal(tmp_path / "train.csv")) == f"{tmp_path / 'train.csv'} does not exist"


def test_a_folder_in_a_files_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train.csv").mkdir()

    assert "cannot be read" in str(refusal(tmp_path / "train.csv"))


# Tasks ----------------------------------------------------------------------------------------------------------------


def test_a_folder_is_a_task_with_the_labels_of_both_parts(tmp_path: Path) -> None:
    task = load_task(str(folder(tmp_path, test="text,label\nc,z\nd,x\n")), None)

    assert task.labels == ("x", "y", "z")
    assert task.truth.tolist() == [2, 0]
    assert [example.text for example in task.train] == ["a", "b"]
    assert [example.label for example in task.test] == ["z", "x"]


def test_a_folder_without_a_part_is_refused(tmp_path: Path) -> None:
    folder(tmp_path)
    (tmp_path / "test.csv").unlink()

    with pytest.raises(Invalid, match=r"test\.csv does not exist"):
        load_task(str(tmp_path), None)


def test_a_task_with_one_label_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="one label only, 'x'"):
        load_task(str(folder(tmp_path, train="text,label\na,x\n")), None)


def test_a_task_of_150_labels_is_read_whole(tmp_path: Path) -> None:
    lines = "".join(f'"say ""{n}"",\nplease",intent {n}\n' for n in range(150))

    task = load_task(str(folder(tmp_path, f"text,label\n{lines}", f"text,label\n{lines}")), None)

    assert len(task.labels) == 150
    assert task.test[149] == Example(149, 'say "149",\nplease', "intent 149")


def test_a_tasks_hash_covers_every_text_and_label(tmp_path: Path) -> None:
    def sha256(name: str, **parts: str) -> str:
        return load_task(str(folder(tmp_path / name, **parts)), None).sha256

    assert sha256("a") == sha256("b")
    changed = [sha256("c", train="text,label\na,y\nb,x\n"), sha256("d", test="text,label\nC,x\n")]
    assert len({sha256("a"), *changed}) == 3


def test_the_shipped_task_has_12_intents_of_30_and_15_different_texts() -> None:
    task = load_task("intents", None)

    assert len(task.labels) == 12
    assert Counter(example.label for example in task.train) == dict.fromkeys(task.labels, 30)
    assert Counter(example.label for example in task.test) == dict.fromkeys(task.labels, 15)
    normal = [" ".join(example.text.lower().split()) for example in (*task.train, *task.test)]
    assert len(set(normal)) == len(normal) == 540
    assert all(normal)


@pytest.mark.parametrize("by", ["argument", "environment"])
def test_banking77_is_read_from_a_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str) -> None:
    folder(tmp_path / "banking77", train="text,category\na,x\nb,y\n", test="text,category\nc,x\n")
    if by == "environment":
        monkeypatch.setenv("QLORA_BENCH_DATA", str(tmp_path))

    task = load_task("banking77", tmp_path if by == "argument" else None)

    assert task.labels == ("x", "y")


@pytest.mark.parametrize("layout", ["parquet", "csv"])
def test_banking77_is_read_from_the_hub_where_no_folder_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    # A local folder of the hub's layout stands in for the hub.
    for part, texts in (("train", ["a", "b"]), ("test", ["c", "d"])):
        columns = {"text": texts, "label": [0, 1], "label_text": ["card_arrival", "top_up"]}
        (tmp_path / "data").mkdir(exist_ok=True)
        if layout == "parquet":
            parquet.write_table(pa.table(columns), tmp_path / "data" / f"{part}-00000-of-00001.parquet")
        else:
            rows = "".join(f"{t},{n},{name}\n" for t, n, name in zip(*columns.values(), strict=True))
            write(tmp_path / "data" / f"{part}.csv", "text,label,label_text\n" + rows)
    monkeypatch.setitem(TASKS, "banking77", replace(TASKS["banking77"], hub_id=str(tmp_path)))

    task = load_task("banking77", tmp_path / "elsewhere")

    assert task.labels == ("card_arrival", "top_up")
    assert [example.text for example in task.test] == ["c", "d"]


def test_banking77_without_a_folder_or_a_network_says_where_to_put_it() -> None:
    with pytest.raises(Invalid, match="the hub did not give mteb/banking77") as caught:
        load_task("banking77", None)
    assert "QLORA_BENCH_DATA" in str(caught.value.fix)


# Subsets --------------------------------------------------------------------------------------------------------------


def balanced(labels: int, each: int) -> tuple[Example, ...]:
    return tuple(Example(row, f"text {row}", f"label {row % labels}") for row in range(labels * each))


def test_a_subset_is_the_same_every_time_and_in_the_files_order() -> None:
    chosen = subset(balanced(7, 20), 50, "train_examples")

    assert chosen == subset(balanced(7, 20), 50, "train_examples")
    assert len(chosen) == 50
    assert [example.index for example in chosen] == sorted({example.index for example in chosen})
    assert max(example.index for example in chosen) > 100  # not the first of each label


@given(st.integers(2, 9), st.integers(1, 12), st.data())
def test_a_subset_of_balanced_labels_is_balanced(labels: int, each: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, labels * each))

    taken = Counter(example.label for example in subset(balanced(labels, each), count, "train_examples"))

    assert sum(taken.values()) == count
    assert all(count // labels <= taken[f"label {label}"] <= -(-count // labels) for label in range(labels))


def test_a_subset_keeps_the_shares_of_unequal_labels() -> None:
    examples = tuple(Example(row, "", "often" if row % 10 else "rarely") for row in range(1000))

    assert Counter(example.label for example in subset(examples, 100, "eval_examples")) == {"often": 90, "rarely": 10}


def test_a_larger_subset_holds_the_smaller_one() -> None:
    examples = balanced(7, 20)

    assert set(subset(examples, 30, "train_examples")) < set(subset(examples, 60, "train_examples"))


def test_all_is_everything_and_more_than_that_is_refused() -> None:
    examples = balanced(3, 4)

    assert subset(examples, "all", "train_examples") == subset(examples, 12, "train_examples") == examples
    with pytest.raises(Invalid, match="train_examples: 13 asked for, and the task has 12"):
        subset(examples, 13, "train_examples")


def test_a_text_of_any_length_is_read(tmp_path: Path) -> None:
    path = tmp_path / "long.csv"
    path.write_text(f"text,label\n{'long ' * 40_000},y\n")

    (example,) = tasks.read_csv(path)

    assert len(example.text) == 200_000


def test_the_hub_s_own_columns_give_the_names_of_the_labels(tmp_path: Path) -> None:
    path = tmp_path / "hub.csv"
    path.write_text("text,label,label_text\nwhere is it,7,card_arrival\n")

    (example,) = tasks.read_csv(path)

    assert example.label == "card_arrival"
