from __future__ import annotations

from importlib import resources

from bench.matrix.cell_vocabulary import CELLS
from bench.matrix.parameters import Parameters
from bench.matrix.tasks import FILES, PARTS, TASKS


def test_a_task_is_shipped_or_has_an_id_on_the_hub() -> None:
    assert {name: (task.name, task.shipped, task.hub_id) for name, task in TASKS.items()} == {
        "banking77": ("banking77", False, "mteb/banking77"),
        "intents": ("intents", True, None),
    }


def test_the_package_holds_the_tasks_that_are_shipped_and_no_others() -> None:
    folders = [entry for entry in (resources.files("bench.cell") / "data").iterdir() if entry.is_dir()]

    assert {folder.name for folder in folders} == {task.name for task in TASKS.values() if task.shipped}
    assert all((folder / file).is_file() for folder in folders for file in FILES)


def test_the_files_of_a_task_are_its_parts_in_order() -> None:
    assert PARTS == ("train", "test")
    assert FILES == ("train.csv", "test.csv")


def test_the_default_task_is_known_and_the_documentation_names_every_task() -> None:
    field = Parameters.model_fields["task"]
    (kind,) = CELLS.kinds["task"]

    assert field.default in TASKS
    assert str(field.description).startswith(", ".join(TASKS))
    assert kind.short.startswith(" | ".join(TASKS))
