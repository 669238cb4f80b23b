"""What a matrix of kernels can say."""

from __future__ import annotations

from dataclasses import replace

from bench.matrix import subjects
from bench.matrix.kernel_parameters import KERNEL_DERIVED, KERNEL_RULES, KernelParameters, silent
from bench.matrix.kinds import TEXT, kinds_of
from bench.matrix.parameters import Parameters
from bench.matrix.parts import SHARED_ABSENT, SHARED_PARTS
from bench.matrix.texts import check_layer, check_model
from bench.matrix.vocabulary import KEYS, Vocabulary
from bench.matrix.wording import listing

KERNELS = Vocabulary(
    subject=subjects.KERNELS,
    noun="case",
    model=KernelParameters,
    kinds=kinds_of(
        KernelParameters,
        {
            "model": (replace(TEXT, short="name | owner/name | folder"),),
            "layer": (replace(TEXT, short="name | OUTxIN"),),
        },
    ),
    checks={"model": check_model, "layer": check_layer},
    derived=KERNEL_DERIVED,
    later=(),
    rules=KERNEL_RULES,
    silent=silent,
    parts={**SHARED_PARTS, "operation": str, "layer": str, "rows": str},
    absent=SHARED_ABSENT,
    keys=KEYS,
    foreign_keys={
        "baseline": "remove it: every case is compared with the one of quant_type none",
        "seeds": "remove it: nothing is trained, and each case is timed again and again",
        "watch_pairs": "remove it: a case has no labels",
    },
    foreign=frozenset(Parameters.model_fields),
    advice=f"a matrix of kernels takes {listing(tuple(KernelParameters.model_fields), 'and')}",
    limit_option=None,
)
