"""Switch off the telemetry of runtimes.

What they do by default, read from their sources (the versions of constraints.txt):

- onnxruntime 1.31: the Linux wheel starts an uploader on import. It stores a device id under
  ~/.cache/Microsoft and sends session, operator and device facts to
  mobile.events.data.microsoft.com (its Privacy.md). With `ORT_DISABLE_TELEMETRY=1` before the
  import there is no uploader, no event and no device id. `import repzoo` sets it, and child
  processes inherit it. Set it to 0 beforehand to keep telemetry on.
- openvino 2026.4: `import openvino` imports its converter, which sends "import" and the version to
  Google Analytics with a client id kept in ~/intel, unless the package openvino-telemetry is
  absent, the environment says CI, or the user opted out.
- nncf 3.4: each entry point sends its name and settings in the same way.
- MNN 3.6: `import MNN.tools` runs `pip install -U aliyun-log-python-sdk` if that package is
  missing, and fetches credentials from a server of Alibaba. `mnnconvert` and `mnnquant` then send
  machine id, system, version, the model's id, its size and all arguments. `import MNN` does not.
  repzoo calls the C extension below those tools (engines/mnn.py) and never imports them.
- huggingface_hub 2.4: names the version of torch and the agent that runs it in every request, and
  asks for a list of agents once a day. `HF_HUB_DISABLE_TELEMETRY=1` before the import ends both;
  zoo/hub.py sets it.

`unreported` blocks the reporting modules while a runtime is imported. Each runtime then uses
its own stub.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

REPORTERS = ("openvino_telemetry", "aliyun", "aliyun.log", "MNN.tools")


def silence_onnxruntime() -> None:
    """Disable ONNX Runtime's telemetry. Call before it is imported; child processes inherit it."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


@contextlib.contextmanager
def unreported() -> Iterator[None]:
    """Import a runtime in this block. Its reporting modules raise ImportError meanwhile.

    A reporting module that was imported before is restored afterward: other code may use it.
    """
    silence_onnxruntime()
    before = {name: sys.modules[name] for name in REPORTERS if name in sys.modules}
    # None in sys.modules makes an import raise ImportError.
    sys.modules.update(dict.fromkeys(REPORTERS))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in REPORTERS:
            sys.modules.pop(name, None)
        sys.modules.update(before)
