"""INT8 models whose latency stands for that of a model without weights yet."""

from __future__ import annotations

import numpy as np
import pytest
from tests.small_model import small

from repzoo.artifact import Artifact
from repzoo.engines import engine
from repzoo.errors import InputError
from repzoo.graph.tools.int8_share import int8_share
from repzoo.quant.search.int8_for_timing import int8_for_timing


def test_every_form_runs_and_the_first_has_most_in_int8() -> None:
    runner = engine("onnxruntime")
    forms = int8_for_timing(small(), runner)
    assert {form.form for form in forms} == {"int8"}
    assert int8_share(forms[0]).int8_layers == 3
    for form in forms:
        images = np.zeros((1, 3, 16, 16), np.float32)
        assert runner.open(form.model).run(images).shape == (1, 10)


def test_a_training_form_is_refused(trained: Artifact) -> None:
    with pytest.raises(InputError, match="in train form"):
        int8_for_timing(trained, engine("onnxruntime"))
