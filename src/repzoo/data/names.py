"""Names as people read them: which class names mean the same, and which folders are parts."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence

TRAIN = "train"
# Names of the parts of a data set, as PyTorch, Keras, Roboflow and Hugging Face datasets use them.
# Source of most: Hugging Face datasets, "Structure your repository", keywords of split names.
PART_ROLES = {
    TRAIN: TRAIN,
    "training": TRAIN,
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
}
EXAMPLES = 4  # names that a sentence lists before "..."


def part_role(name: str) -> str:
    """What the part `name` is for: "train", "validation", "test", or "" for any other name."""
    return PART_ROLES.get(name.casefold(), "")


def reading_key(name: str) -> str:
    """The same string for names that a person reads as the same.

    Names differ by Unicode normal form (macOS writes "é" as two characters), by case, and by
    spaces, underscores and hyphens.
    """
    folded = unicodedata.normalize("NFC", name).casefold()
    words = re.split(r"[\s_\-]+", folded)
    return " ".join(word for word in words if word)


def unique_by_key(names: Iterable[str]) -> dict[str, str]:
    """reading_key -> name, for the keys that exactly one of `names` has."""
    by_key: dict[str, str] = {}
    ambiguous = set()
    for name in dict.fromkeys(names):
        key = reading_key(name)
        if key in by_key:
            ambiguous.add(key)
        by_key[key] = name
    return {key: name for key, name in by_key.items() if key not in ambiguous}


def match_names(names: Sequence[str], known: Sequence[str]) -> dict[str, str]:
    """name -> the one of `known` that it means, without those that mean none or several.

    An exact match comes first. Where two of `names` read alike, such as "Dog" and "dog", only
    exact matches count for them.
    """
    exact = set(known)
    known_by_key = unique_by_key(known)
    unique_names = set(unique_by_key(names).values())
    matches = {}
    for name in names:
        if name in exact:
            matches[name] = name
        elif name in unique_names and reading_key(name) in known_by_key:
            matches[name] = known_by_key[reading_key(name)]
    return matches


def are_numbers(names: Iterable[str]) -> bool:
    """Whether each name is a decimal number, and no two of them the same one."""
    listed = list(names)
    if not all(name.isascii() and name.isdecimal() for name in listed):
        return False
    return len({int(name) for name in listed}) == len(listed)


def are_indices(names: Iterable[str]) -> bool:
    """Whether the names are the numbers 0 to n - 1, such as the indices of a model's outputs."""
    listed = list(names)
    if not are_numbers(listed):
        return False
    # n different numbers from 0 on are 0 to n - 1 where the largest is n - 1.
    return max(map(int, listed), default=-1) == len(listed) - 1


def shown(name: str) -> str:
    """`name` for a sentence; control characters are written as escapes."""
    return name if name.isprintable() else repr(name)


def enumeration(names: Sequence[str]) -> str:
    """The first names, separated by commas."""
    listed = ", ".join(shown(name) for name in names[:EXAMPLES])
    return listed if len(names) <= EXAMPLES else f"{listed}, ..."
