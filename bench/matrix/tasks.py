"""Tasks that the project knows by a short name: one that it ships, and one of the hub."""

from __future__ import annotations

from dataclasses import dataclass

# The parts of every task, under the names that the hub gives them, and the file of each part in a task's folder.
PARTS = ("train", "test")
FILES = tuple(f"{part}.csv" for part in PARTS)


@dataclass(frozen=True)
class KnownTask:
    """A task with a short name, and its dataset on the hub: None where the task is shipped.

    A task that is not shipped is taken from the folder of tasks where there is one, and from the hub otherwise.
    """

    name: str
    hub_id: str | None = None

    @property
    def shipped(self) -> bool:
        return self.hub_id is None


TASKS: dict[str, KnownTask] = {
    task.name: task
    for task in (
        KnownTask("banking77", "mteb/banking77"),
        KnownTask("intents"),
    )
}
