"""Arrays that wait on disk come back as they were, once."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from repzoo.errors import InputError
from repzoo.quant.calibration import disk_buffer as disk_buffer_module
from repzoo.quant.calibration.disk_buffer import Array, DiskBuffer

shapes = arrays.array_shapes(min_dims=1, max_dims=4, max_side=5)


@given(
    st.lists(arrays.arrays(np.float32, shapes), max_size=6),
    st.sampled_from([16, 2**22]),
)
def test_arrays_come_back_in_their_order_from_memory_and_from_disk(
    given_arrays: list[Array], room: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(disk_buffer_module, "MAX_BYTES_IN_MEMORY", room)
        with DiskBuffer(
            array.T for array in given_arrays
        ) as kept:  # not as memory holds them
            restored = list(kept)
    assert [array.tobytes() for array in restored] == [
        np.ascontiguousarray(array.T).tobytes() for array in given_arrays
    ]
    assert [array.shape for array in restored] == [
        array.T.shape for array in given_arrays
    ]


def test_a_full_disk_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(disk_buffer_module, "MAX_BYTES_IN_MEMORY", 16)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(InputError, match=r"temporary file .*gone.* set TMPDIR"):
        DiskBuffer([np.zeros(100, np.float32)])


def test_what_fails_on_the_way_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """pytest turns the warning of a file that nobody closed into an error."""
    monkeypatch.setattr(disk_buffer_module, "MAX_BYTES_IN_MEMORY", 16)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(ZeroDivisionError):
        DiskBuffer(np.full(100 // divisor, 1.0, np.float32) for divisor in (1, 0))
    assert not list(tmp_path.iterdir())
