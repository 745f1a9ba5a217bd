"""A buffer of arrays on disk: written once, then read once in the same order."""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

from repzoo.errors import InputError

Array = npt.NDArray[np.float32]
MAX_BYTES_IN_MEMORY = 2**22  # a buffer larger than this moves to disk


class DiskBuffer:
    """float32 arrays of any shapes in a temporary file. Iterate once to read them back in order.

    The file is deleted after the last array has been read, or on leaving the `with` block.

    Raises:
        InputError: the folder for temporary files is full or cannot be written.
    """

    def __init__(self, arrays: Iterable[Array]) -> None:
        self._shapes = list[tuple[int, ...]]()
        # the file outlives this method, so no `with` here: __iter__ or __exit__ closes it
        self._file = tempfile.SpooledTemporaryFile(MAX_BYTES_IN_MEMORY)  # noqa: SIM115
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(self._file.close)
            for array in arrays:
                self._write(array)
            on_failure.pop_all()

    def __enter__(self) -> DiskBuffer:
        """Return the buffer itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Delete the file."""
        self._file.close()

    def _write(self, array: Array) -> None:
        contiguous = np.ascontiguousarray(array, np.float32)
        try:
            self._file.write(contiguous.data)
        except OSError as error:
            raise InputError(
                f"cannot write a temporary file ({error}); "
                "free some disk space, or set TMPDIR to a folder on a larger disk"
            ) from None
        self._shapes.append(array.shape)

    def __iter__(self) -> Iterator[Array]:
        """Yield the arrays in the order in which they were written, then delete the file."""
        self._file.seek(0)
        for shape in self._shapes:
            data = self._file.read(4 * math.prod(shape))
            values = np.frombuffer(data, np.float32)
            yield values.reshape(shape)
        self._file.close()  # frees the disk space before the buffer itself goes out of scope
