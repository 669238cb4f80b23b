"""What a matrix of cells can say."""

from __future__ import annotations

from dataclasses import replace

from bench.matrix import subjects
from bench.matrix.kinds import BYTES, CARD, NONE, SIZE, TEXT, kinds_of
from bench.matrix.parameters import DERIVED, LATER, MEANINGLESS, Parameters
from bench.matrix.parts import SHARED_ABSENT, SHARED_PARTS, last_name, short_dtype
from bench.matrix.texts import check_model, check_task
from bench.matrix.vocabulary import KEYS, Vocabulary
from bench.matrix.wording import written

CELLS = Vocabulary(
    subject=subjects.CELLS,
    noun="cell",
    model=Parameters,
    kinds=kinds_of(
        Parameters,
        {
            "model": (replace(TEXT, short="name | owner/name | folder"),),
            "task": (replace(TEXT, short="banking77 | intents | folder"),),
            "vram_limit": (NONE, BYTES, SIZE, CARD),
        },
    ),
    checks={"model": check_model, "task": check_task},
    derived=DERIVED,
    later=LATER,
    rules=MEANINGLESS,
    silent=lambda values: (),
    parts={
        **SHARED_PARTS,
        "load_dtype": lambda value: "load-" + short_dtype(value),
        "target_modules": lambda value: value if isinstance(value, str) else "+".join(value),
        "lora_alpha": lambda value: f"a{value}",
        "kbit_upcast": lambda value: "upcast" if value is True else "no-upcast",
        "gradient_checkpointing": lambda value: "ckpt" if value is True else "",
        "optim": str,
        "learning_rate": lambda value: f"lr{written(value)}",
        "batch_size": lambda value: f"bs{value}",
        "max_length": lambda value: f"len{value}",
        "task": lambda value: "task=" + last_name(value),
        "vram_limit": lambda value: "vram-" + ("none" if value is None else str(value).lower().replace(" ", "-")),
    },
    absent={**SHARED_ABSENT, "gradient_checkpointing": "no-ckpt"},
    keys=(*KEYS, "baseline", "seeds", "watch_pairs"),
    foreign_keys={},
    foreign=frozenset(),
    advice="qlora-bench params lists the parameters",
    limit_option="--max-cells",
)
