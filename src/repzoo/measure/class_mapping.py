"""Which output of a model belongs to which class of a data set."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from repzoo.artifact import Artifact
from repzoo.data.dataset import Dataset
from repzoo.data.names import are_numbers, enumeration, match_names
from repzoo.errors import InputError
from repzoo.graph.tools.head import THRESHOLD, Head, HeadKind, find_head
from repzoo.remark import Remark

Model = TypeVar("Model", bound=Artifact)

SYNSET = re.compile(r"^n\d{8}\b")  # a WordNet id, as ImageNet names its folders


def class_indices(dataset: Dataset, artifact: Artifact) -> list[int]:
    """The model's output index for each class of the data.

    Classes are matched by name, as people read names: Unicode normal form, case, spaces,
    underscores and hyphens do not count where no two labels differ by them alone. A label that
    begins with a WordNet id ("n01440764 tench, Tinca tinca") is also known by that id, which names
    ImageNet's folders.

    Without labels, classes are matched by position where there are as many as outputs, or by
    number where they are numbers below the count of the outputs.

    Raises:
        InputError: neither names nor counts match, or a class is named by a label that the model
        has twice.
    """
    labels, classes = class_labels(artifact), dataset.classes
    by_name = _indices_by_name(labels)
    matches = match_names(classes, list(by_name))
    if labels and len(matches) == len(classes):
        return [_only_index(by_name, matches[name], artifact) for name in classes]
    if len(artifact.labels) == 1 and len(labels) == len(classes) and len(matches) == 1:
        # The label of a single probability names one folder; the other folder is the rest.
        return [int(name in matches) for name in classes]
    # Two different lists of names may be of the same length: position alone is no evidence.
    outputs = _count_outputs(artifact)
    if outputs == len(classes) and (not labels or dataset.ordered):
        return list(range(outputs))
    if _names_outputs(dataset, artifact):
        return [int(name) for name in classes]
    raise InputError(_mismatch(dataset, artifact, matches))


def require_classes(artifact: Artifact) -> Head:
    """What the model's outputs mean.

    Raises:
        InputError: they are not the classes or labels of images; the error says what they are.
    """
    head = find_head(artifact.model)
    if head.kind is HeadKind.OTHER:
        raise InputError(
            f"the outputs of {artifact.name} are not one number for each class: {head.reason}; "
            "export it with one output [N, classes] that holds logits or probabilities"
        )
    return head


def head_remarks(artifact: Artifact) -> list[str]:
    """What to know about Top-1 where the outputs are not one for each class."""
    if not find_head(artifact.model).is_multi_label:
        return binary_remarks(artifact)
    return [
        f"{artifact.name} ends in Sigmoid, so several labels may hold for an image; Top-1 asks "
        "only for the most probable one"
    ]


def binary_remarks(artifact: Artifact) -> list[str]:
    """How a single probability was read; nothing for other heads."""
    if find_head(artifact.model).kind is not HeadKind.BINARY:
        return []
    first, second = class_labels(artifact) or ("0", "1")
    return [
        Remark(
            "{model} has a single output, read as the probability of its second class: above "
            "{threshold} it says {second}, else {first}",
            model=artifact.name,
            threshold=THRESHOLD,
            second=second,
            first=first,
        )
    ]


def lacks_classes(dataset: Dataset, artifact: Artifact) -> bool:
    """Whether nothing says which output is which class of the data.

    That is so for a model without labels whose number of outputs differs from that of the classes,
    and for a single output that is no probability.

    Such images still serve for calibration, and to compare two forms of the model.
    """
    if artifact.labels or not dataset.labeled or _names_outputs(dataset, artifact):
        return False
    outputs = _count_outputs(artifact)
    return len(dataset.classes) != outputs or outputs == 1


def with_output_classes(dataset: Dataset, artifact: Artifact) -> Dataset:
    """The images without their labels; the classes are the numbers of the outputs of `artifact`.

    Evaluation asks for classes. The targets mean nothing until the predictions of a model take
    their place.
    """
    # Numbers, not the model's labels: these may be ambiguous, as ImageNet's two "crane" are.
    numbers = tuple(str(index) for index in range(_count_outputs(artifact)))
    return replace(dataset.without_labels(), classes=numbers, ordered=True)


def output_labels(dataset: Dataset, artifact: Artifact) -> tuple[str, ...]:
    """The model's labels; without them the data's classes where there are as many as outputs."""
    if artifact.labels or len(dataset.classes) != _count_outputs(artifact):
        return class_labels(artifact)
    return dataset.classes


def with_folder_names(artifact: Model, images: Dataset) -> Model:
    """`artifact` with the names of the folders as its labels, where it has none.

    Not where the order of the folders is in doubt, since labels in a file are trusted.
    """
    if artifact.labels or order_remarks(images, artifact):
        return artifact
    return replace(artifact, labels=output_labels(images, artifact))


def order_remarks(dataset: Dataset, artifact: Artifact) -> list[str]:
    """What to know where numbered folders may be in another order than the model's outputs."""
    classes = dataset.classes
    if artifact.labels or dataset.ordered or not are_numbers(classes):
        return []
    by_number = sorted(classes, key=int)
    by_name = sorted(classes)
    if by_number == by_name:
        return []
    order = "by number" if list(classes) == by_number else "by name"
    if _names_outputs(dataset, artifact):
        order = "as the indices of the outputs"
    return [
        Remark(
            "{model} has no labels, and the folders of {data} are ordered differently by number "
            "({by_number}) and by name ({by_name}, as torchvision's ImageFolder orders them); "
            "they were taken {order}. If that is not the order of the outputs, put a classes.tsv "
            "into the data that lists the folders in that order, one a line, or give the model's "
            "--labels",
            model=artifact.name,
            data=dataset.name,
            by_number=enumeration(by_number),
            by_name=enumeration(by_name),
            order=order,
        )
    ]


def _count_outputs(artifact: Artifact) -> int:
    """Classes of the outputs: a single probability tells two apart."""
    if artifact.num_classes == 1:
        return max(1, find_head(artifact.model).classes)
    return artifact.num_classes or len(artifact.labels)


def class_labels(artifact: Artifact) -> tuple[str, ...]:
    """The labels of the classes; where one label names a single probability, also its opposite."""
    labels = artifact.labels
    if len(labels) == 1 and _count_outputs(artifact) == 2:
        return f"not {labels[0]}", labels[0]
    return labels


def _names_outputs(dataset: Dataset, artifact: Artifact) -> bool:
    """Whether the folders are numbers of outputs, some of which have no folder."""
    if artifact.labels or dataset.ordered or not are_numbers(dataset.classes):
        return False
    outputs = _count_outputs(artifact)
    largest = max(map(int, dataset.classes))
    return len(dataset.classes) < outputs and largest < outputs


def _only_index(by_name: dict[str, list[int]], name: str, artifact: Artifact) -> int:
    indices = by_name[name]
    if len(indices) > 1:
        raise InputError(
            f"{artifact.name} has two classes called {name!r}; name the folders by unique labels"
        )
    return indices[0]


def _mismatch(dataset: Dataset, artifact: Artifact, matches: dict[str, str]) -> str:
    outputs = _count_outputs(artifact)
    if outputs == 1:
        return (
            f"{artifact.name} has a single output, and {dataset.name} has {len(dataset.classes)} "
            "classes, so nothing can be counted; export it with one output for each class"
        )
    listed = f"add a classes.tsv that lists its {outputs} classes in order"
    if not artifact.labels:
        count = len(dataset.classes)
        return (
            f"{dataset.name} has {count} classes, but {artifact.name} tells {outputs} apart and "
            "has no labels, so nothing says which output is which class; give --labels with a file "
            f"that names the outputs, one a line, or {listed}. To compare two forms of the model "
            "by what they predict, give --against"
        )
    labels = class_labels(artifact)
    unknown = next((name for name in dataset.classes if name not in matches), "")
    return (
        f"the classes of {dataset.name} ({len(dataset.classes)}, such as {unknown!r}) are not "
        f"those of {artifact.name} ({outputs}, such as {labels[0]!r}); name the folders "
        f"by the model's labels, or {listed}"
    )


def _indices_by_name(labels: Sequence[str]) -> dict[str, list[int]]:
    """Output indices of each label, and of the WordNet id that it begins with."""
    by_name: dict[str, list[int]] = {}
    for index, label in enumerate(labels):
        # A set, since a label may be a WordNet id and no more.
        for name in {label, *SYNSET.findall(label)}:
            by_name.setdefault(name, []).append(index)
    return by_name
