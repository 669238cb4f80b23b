"""What was most likely meant by a limit of memory that cannot be read, in a matrix or behind an option."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

from bench.errors import BenchError
from bench.matrix.cards import CARDS, CONTEXT_BYTES, LEAST_BYTES, Card, bare_name, card_of, size_of, without_maker
from bench.matrix.wording import listing, quoted, short_float

# A bare number is bytes. Less than this is no card's memory, so that gigabytes or a card were meant.
FEWEST_BYTES = 10**6
MOST_GB = 1000

ABOVE_ZERO = "write a size above zero, such as 16GB"
A_SIZE = "write a size such as 16GB or 14.5GiB"
ABOVE_CONTEXT = f"write more than the {CONTEXT_BYTES / 1e9:.2f} GB that CUDA takes before a model, such as 8GB"
ITS_MEMORY = "write its memory, such as 8GB"

_SPELLINGS = {
    "MB": ("m", "mb", "meg", "megs", "megabyte", "megabytes"),
    "GB": ("g", "gb", "gig", "gigs", "gigabyte", "gigabytes"),
    "MiB": ("mi", "mib", "mebibyte", "mebibytes"),
    "GiB": ("gi", "gib", "gibibyte", "gibibytes"),
}
_WORDS = {spelling: unit for unit, spellings in _SPELLINGS.items() for spelling in spellings}
_SIZE_LIKE = re.compile(r"([-+]?[0-9]{1,15}(?:[.,][0-9]{1,9})?)\s*([A-Za-z]+)")
_THOUSANDS = re.compile(r"(?<=[0-9])[,_](?=[0-9]{3}(?![0-9]))")
# What makes a model of a card: its letters, its number, and Ti or SUPER; and the size that some are sold in.
_MODEL = re.compile(r"([a-z]*)[\s_-]*([0-9]+)[\s_-]*((?:ti)?[\s_-]*(?:super)?)(?:.*?(?<![0-9.])([0-9]{1,4})\s*gi?b)?")
_CONSUMER = ("rtx", "gtx")
_OTHERS = ("laptop", "max-q", "mobile")  # cards of a name, with less memory

_MOST_SLIPS = 4  # more cards than these are no suggestion
_LONGEST = 60  # no card's name is longer, however its maker writes it


def read_cards(texts: Iterable[str], option: str = "--card") -> tuple[Card, ...]:
    """Read what stands behind `option`: names of cards, or sizes such as 20GB; each once.

    Raises:
        BenchError: one is neither, or is less than CUDA itself takes.
    """
    cards: dict[str, Card] = {}
    for text in texts:
        try:
            plain = "".join(text.split()) if text[:1].isdecimal() else text.strip()
            card = card_of(int(plain) if plain.isdecimal() and int(plain[:_LONGEST]) >= FEWEST_BYTES else plain)
        except ValueError as error:
            raw = int(text) if text.isdecimal() and len(text) <= _LONGEST else text
            what = f"{option}: {quoted(text)} is neither a card nor a size such as 20GB"
            raise BenchError(what, advice(raw) or known_cards()) from error
        if card.memory_bytes < LEAST_BYTES:
            raise BenchError(f"{option}: nothing can run in {quoted(text)}", ABOVE_CONTEXT)
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
    return f"the cards are {listing(tuple(CARDS), 'and')}; or {ITS_MEMORY}"


def cards_near(text: str) -> list[str]:
    """Find the cards that `text` may mean: the same model, with more or less said of it, or with its series misspelt.

    Where there is none, and a bare number was written, those of the series whose number is a slip of the finger away. A
    card of another size, or a Ti or SUPER where `text` has none, is another card and never meant.
    """
    if any(word in text.lower() for word in _OTHERS):
        return []
    letters, number, size_gb = _model(text[:_LONGEST])
    models = {
        name: _model(name)
        for name, card in CARDS.items()
        if size_gb is None or _is_about(size_gb * 2**30, card.memory_bytes)
    }
    same = [name for name, (_, known, _) in models.items() if known == number]
    exact = [name for name in same if models[name][0] == letters]
    # One letter is a series of its own: the P4000 is no RTX 4000.
    alike = [name for name in same if models[name][0] in _CONSUMER and len(letters) != 1]
    bare = bare_name(text[:_LONGEST])
    begun = [name for name in exact if bare.startswith(bare_name(name))]
    if begun or exact or alike:
        return [max(begun, key=len)] if begun else exact or alike
    if size_gb or not number.isdecimal():
        return []
    slips = [name for name, (series, known, _) in models.items() if series == letters and _is_slip(number, known)]
    return slips if len(slips) <= _MOST_SLIPS else []


def _is_slip(one: str, other: str) -> bool:
    """Tell whether a character is wrong, missing or too many in one of two texts, or two neighbours are swapped."""
    if len(one) == len(other):
        at = [index for index in range(len(one)) if one[index] != other[index]]
        swapped = len(at) == 2 and at[1] == at[0] + 1 and one[at[0] : at[1] + 1] == other[at[0] : at[1] + 1][::-1]
        return len(at) == 1 or swapped
    short, long = sorted((one, other), key=len)
    return len(long) == len(short) + 1 and any(long[:at] + long[at + 1 :] == short for at in range(len(long)))


def _is_about(size: int, memory: int) -> bool:
    # A card's memory is told in GB or GiB, with what ECC takes or without.
    return abs(size - memory) <= memory / 10


def _model(name: str) -> tuple[str, str, int | None]:
    """Return the letters of a model, its number with Ti or SUPER, and the GB that stand behind it."""
    match = _MODEL.search(without_maker(name))
    if match is None:
        return "", "", None
    letters, number, suffix, size_gb = match.groups()
    return letters, number + re.sub(r"[\s_-]", "", suffix), int(size_gb) if size_gb else None


def _size_advice(text: str) -> str | None:
    match = _SIZE_LIKE.fullmatch(_THOUSANDS.sub("", text.strip()))
    unit = _WORDS.get(match[2].lower()) if match else None
    if match is None or unit is None:
        return ABOVE_CONTEXT if size_of(text) else None
    size = float(match[1].replace(",", "."))
    card = size_of(f"{short_float(size)}{unit}")
    if size <= 0 or card is None:
        return ABOVE_ZERO
    return f"write {card.name}" if card.memory_bytes >= LEAST_BYTES else ABOVE_CONTEXT


def _card_advice(text: str) -> str | None:
    if near := cards_near(text):
        return f"did you mean {listing(near)}? Or {ITS_MEMORY}"
    return A_SIZE if text.strip()[:1].isdecimal() else None


def _number_advice(value: float) -> str:
    if math.isfinite(value) and 1 <= value < FEWEST_BYTES:
        if value <= MOST_GB:
            return f"write {value:g}GB"
        return (_card_advice(str(int(value))) if float(value).is_integer() else None) or A_SIZE
    if FEWEST_BYTES <= value < LEAST_BYTES:
        return ABOVE_CONTEXT
    return A_SIZE if value > 0 and math.isfinite(value) else ABOVE_ZERO
