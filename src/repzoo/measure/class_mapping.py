"""Which output of a model belongs to which class of a data set."""

from __future__ import annotations

import re
from collections.abc import Sequence

from repzoo.artifact import Artifact
from repzoo.data.dataset import Dataset
from repzoo.errors import InputError

SYNSET = re.compile(r"^n\d{8}\b")  # a WordNet id, as ImageNet names its folders


def class_indices(dataset: Dataset, artifact: Artifact) -> list[int]:
    """The model's output index for each class of the data.

    Classes are matched by name; by position where there are no names to contradict it.

    A label that begins with a WordNet id ("n01440764 tench, Tinca tinca") is also known by that id,
    which names ImageNet's folders.

    Raises:
        InputError: neither names nor counts match, or a class is named by a label that the model
        has twice.
    """
    labels, classes = artifact.labels, dataset.classes
    outputs = artifact.num_classes or len(labels)
    by_name = _indices_by_name(labels)
    if labels and set(classes) <= set(by_name):
        for name in classes:
            if len(by_name[name]) > 1:
                raise InputError(
                    f"{artifact.name} has two classes called {name!r}; "
                    "name the folders by unique labels"
                )
        return [by_name[name][0] for name in classes]
    # Two different lists of names may be of the same length: position alone is no evidence.
    if outputs == len(classes) and (not labels or dataset.ordered):
        return list(range(outputs))
    unknown = next((name for name in classes if name not in by_name), "")
    first_label = repr(labels[0]) if labels else "'unnamed'"
    raise InputError(
        f"the classes of {dataset.name} ({len(classes)}, such as {unknown!r}) are not those of "
        f"{artifact.name} ({outputs}, such as {first_label}); name the folders by the model's "
        f"labels, or add a classes.tsv that lists its {outputs} classes in order"
    )


def _indices_by_name(labels: Sequence[str]) -> dict[str, list[int]]:
    """Output indices of each label, and of the WordNet id that it begins with."""
    by_name: dict[str, list[int]] = {}
    for index, label in enumerate(labels):
        for name in {label, *SYNSET.findall(label)}:
            by_name.setdefault(name, []).append(index)
    return by_name
