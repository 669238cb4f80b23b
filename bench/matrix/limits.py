"""What was most likely meant by a limit of memory that cannot be read, in a matrix or behind `--card`."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable
from typing import Any

from bench.errors import BenchError
from bench.matrix.cards import CARDS, Card, card_of
from bench.matrix.wording import listing, quoted, short_float

ABOVE_ZERO = "write a size above zero, such as 16GB"
A_SIZE = "write a size such as 16GB or 14.5GiB"

# A bare number is bytes. Less than this is no card's memory, so that gigabytes or a card were meant.
LEAST_BYTES = 10**6
MOST_GB = 1000

_SPELLINGS = {
    "MB": ("m", "mb", "meg", "megs", "megabyte", "megabytes"),
    "GB": ("g", "gb", "gig", "gigs", "gigabyte", "gigabytes"),
    "MiB": ("mi", "mib", "mebibyte", "mebibytes"),
    "GiB": ("gi", "gib", "gibibyte", "gibibytes"),
}
_UNITS = {spelling: unit for unit, spellings in _SPELLINGS.items() for spelling in spellings}
_SIZE_LIKE = re.compile(r"([-+]?[0-9]{1,15}(?:[.,][0-9]{1,9})?)\s*([A-Za-z]+)")
_THOUSANDS = re.compile(r"(?<=[0-9])[,_](?=[0-9]{3}(?![0-9]))")
_MAKERS = re.compile(r"nvidia|geforce|tesla|quadro|rtx|gtx|[^a-z0-9]")

_LONGEST = 40  # no card's name is longer
_SHORT = 3  # of so few characters, half are enough to tell which card was meant
_MOST_NEAR = 4


def read_cards(texts: Iterable[str]) -> tuple[Card, ...]:
    """Read what stands behind `--card`: names of cards, or sizes such as 20GB; each once.

    Raises:
        BenchError: one is neither.
    """
    cards: dict[str, Card] = {}
    for text in texts:
        try:
            plain = "".join(text.split()) if text[:1].isdecimal() else text.strip()
            card = card_of(int(plain) if plain.isdecimal() and int(plain[:_LONGEST]) >= LEAST_BYTES else plain)
        except ValueError as error:
            raw = int(text) if text.isdecimal() and len(text) <= _LONGEST else text
            what = f"--card: {quoted(text)} is neither a card nor a size such as 20GB"
            raise BenchError(what, advice(raw) or known_cards()) from error
        cards[card.name] = card
    return tuple(cards.values())


def advice(raw: Any) -> str | None:
    """Say how to mend a limit that cannot be read: a size, or the cards that are near; None where nothing is near."""
    if isinstance(raw, str):
        return _size_advice(raw) or _card_advice(raw)
    if isinstance(raw, int | float) and not isinstance(raw, bool):
        return _number_advice(raw)
    return None


def known_cards() -> str:
    return f"the cards are {listing(tuple(CARDS), 'and')}"


def cards_near(text: str) -> list[str]:
    """Find the cards that `text` may mean: the same but for the maker's words, longer or shorter, or misspelt."""
    names = {_bare(name): name for name in CARDS}
    bare = _bare(text[:_LONGEST])
    if bare in names or not bare:
        return [names[bare]] if bare else []
    longer = [name for known, name in names.items() if known.startswith(bare)]
    shorter = [known for known in names if bare.startswith(known)]
    if found := longer or [names[max(shorter, key=len)]] if shorter or longer else []:
        return found if len(found) <= _MOST_NEAR else []
    if bare[0].isdecimal():
        return []
    near = difflib.get_close_matches(bare, names, n=1, cutoff=0.5 if len(bare) <= _SHORT else 0.6)
    return [names[known] for known in near]


def _bare(name: str) -> str:
    return _MAKERS.sub("", name.lower())


def _size_advice(text: str) -> str | None:
    match = _SIZE_LIKE.fullmatch(_THOUSANDS.sub("", text.strip()))
    unit = _UNITS.get(match[2].lower()) if match else None
    if match is None or unit is None:
        return None
    size = float(match[1].replace(",", "."))
    return f"write {short_float(size)}{unit}" if size > 0 and "e" not in short_float(size) else ABOVE_ZERO


def _card_advice(text: str) -> str | None:
    if near := cards_near(text):
        return f"did you mean {listing(near)}?"
    return A_SIZE if text.strip()[:1].isdecimal() else None


def _number_advice(value: float) -> str:
    if math.isfinite(value) and 1 <= value < LEAST_BYTES:
        if value <= MOST_GB:
            return f"write {value:g}GB"
        if float(value).is_integer() and (near := cards_near(str(int(value)))):
            return f"did you mean {listing(near)}?"
        return A_SIZE
    return A_SIZE if value > 0 and math.isfinite(value) else ABOVE_ZERO
