"""Images that do not fill the batch that a file fixes."""

from __future__ import annotations

import numpy as np

from repzoo.engines import Array
from repzoo.engines.batches import run_padded


def test_a_fixed_batch_that_the_last_images_do_not_fill_changes_nothing() -> None:
    class Fixed:
        """Runs three images at a time, as a file with a fixed batch does."""

        def run_all(self, inputs: Array) -> list[Array]:
            assert len(inputs) == 3
            rows = np.repeat(inputs.reshape(3, -1), 2, 0)
            return [2 * inputs, rows]

    images = np.arange(2 * 4, dtype=np.float32).reshape(2, 1, 2, 2)
    whole, joined = run_padded(Fixed(), images, 3)  # type: ignore[arg-type]
    np.testing.assert_array_equal(whole, 2 * images)
    np.testing.assert_array_equal(joined, np.repeat(images.reshape(2, -1), 2, 0))
