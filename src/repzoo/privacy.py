"""Nothing is reported to anyone: the runtimes that would are told not to, here.

What they do when nobody says no, read in their own sources (the versions of constraints.txt):

- onnxruntime 1.31: the Linux wheel starts an uploader when it is imported. It makes a persistent device id under ~/.cache/Microsoft
  and sends session, operator and device facts to mobile.events.data.microsoft.com (its Privacy.md). `ORT_DISABLE_TELEMETRY=1`
  before the import means that uploader, events and device id are never made; `import repzoo` sets it, and child processes
  inherit it. Who wants it on sets it to 0 beforehand.
- openvino 2026.4: `import openvino` imports its converter, which sends "import" and the version to Google Analytics, with a
  client id kept in ~/intel, unless the package openvino-telemetry is absent, the environment says CI, or the user opted out.
- nncf 3.4: each entry point sends its name and settings in the same way.
- MNN 3.6: `import MNN.tools` runs `pip install -U aliyun-log-python-sdk` when that package is missing, then fetches credentials
  from a server of Alibaba's; `mnnconvert` and `mnnquant` then send machine id, system, version, the model's id, its size and all
  arguments. `import MNN` does not. repzoo calls the C extension below those tools (engines/mnn.py) and never imports them.

`unreported` blocks the reporting modules while a runtime is imported: each runtime falls back to its own stub.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

REPORTERS = ("openvino_telemetry", "aliyun", "aliyun.log", "MNN.tools")


def silence_onnxruntime() -> None:
    """Tell ONNX Runtime, before it is imported anywhere in this process or its children, not to report."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


@contextlib.contextmanager
def unreported() -> Iterator[None]:
    """Import a runtime in this block: its reporting modules cannot be imported meanwhile (ImportError).

    A module that someone imported before is left alone afterward: what they do outside repzoo is theirs.
    """
    silence_onnxruntime()
    before = {name: sys.modules[name] for name in REPORTERS if name in sys.modules}
    sys.modules.update(dict.fromkeys(REPORTERS))  # type: ignore[arg-type]  # None means: importing it raises
    try:
        yield
    finally:
        for name in REPORTERS:
            sys.modules.pop(name, None)
        sys.modules.update(before)
