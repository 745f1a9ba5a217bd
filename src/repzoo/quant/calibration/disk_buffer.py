"""Arrays that wait on disk to be read once."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

from repzoo.errors import InputError

Array = npt.NDArray[np.float32]
IN_MEMORY = 2**22  # bytes; more is written to disk


class Spool:
    """float32 arrays of any shapes, each taken as it is made, kept in a temporary file and given back once, in their order.

    Raises:
        InputError: no room in the folder for temporary files.
    """

    def __init__(self, arrays: Iterable[Array]) -> None:
        self._shapes = list[tuple[int, ...]]()
        self._file = tempfile.SpooledTemporaryFile(IN_MEMORY)  # noqa: SIM115  # closed below, and then gone
        with contextlib.ExitStack() as failing:
            failing.callback(self._file.close)
            for values in arrays:
                self._keep(values)
            failing.pop_all()

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def _keep(self, values: Array) -> None:
        try:
            self._file.write(np.ascontiguousarray(values, np.float32).data)
        except OSError as error:
            raise InputError(
                f"a temporary file cannot be written ({error}); free room, or set TMPDIR to a folder with more"
            ) from None
        self._shapes.append(values.shape)

    def __iter__(self) -> Iterator[Array]:
        self._file.seek(0)
        for shape in self._shapes:
            count = int(np.prod(shape))
            yield np.frombuffer(self._file.read(4 * count), np.float32).reshape(shape)
        self._file.close()  # its room is wanted
