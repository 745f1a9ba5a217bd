"""`repzoo.torch.export`: from one's own module to an Artifact in one call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import repzoo
from repzoo.errors import InputError

torch = pytest.importorskip("torch", reason="the torch extra is not installed")

LABELS = ["cat", "dog", "cow"]


def network() -> Any:
    nn = torch.nn
    torch.manual_seed(0)
    conv = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 8, 3))
    pool = nn.AdaptiveAvgPool2d(1)
    return nn.Sequential(
        conv, nn.BatchNorm2d(8), nn.ReLU(), pool, nn.Flatten(), nn.Linear(8, 3)
    )


def test_the_file_says_what_the_module_says(tmp_path: Path) -> None:
    module, half = network(), (0.5, 0.5, 0.5)
    path = tmp_path / "m.onnx"
    artifact = repzoo.torch.export(
        module, path, size=16, labels=LABELS, mean=half, std=half, crop_fraction=1.0
    )
    assert module.training
    assert artifact.labels == tuple(LABELS)
    assert artifact.form == "train"
    loaded = repzoo.load(path)
    assert loaded.preprocess == artifact.preprocess
    assert loaded.preprocess is not None
    assert (loaded.preprocess.size, loaded.preprocess.mean) == (16, half)
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(np.uint8)
    inputs = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255
    expected = module.eval()((inputs - 0.5) / 0.5).softmax(1)[0]
    (best,) = loaded.predict(pixels, top=1).top
    assert best.label == LABELS[int(expected.argmax())]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"labels": ["cat"]}, "1 labels were given for a model with 3 outputs"),
        ({"size": 2}, "torch cannot export Sequential on an input of 1x3x2x2"),
        ({"sizes": 16}, "no setting of Preprocess is called 'sizes'"),
        ({"input": "uint8"}, "use repzoo.embed_input"),
    ],
)
def test_what_cannot_be_exported_is_a_sentence(
    tmp_path: Path, settings: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence):
        repzoo.torch.export(network(), tmp_path / "m.onnx", **settings)
    assert list(tmp_path.iterdir()) == []
