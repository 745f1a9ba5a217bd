"""Runtimes that report usage do not, in fresh processes with a home of their own, watched from
outside by strace.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.conftest import PROCESS_SECONDS

import repzoo

SOURCE = Path(repzoo.__file__).parent.parent
# What these libraries take as "do not report": without it, nothing but repzoo keeps them quiet.
QUIET = (
    "CI",
    "TF_BUILD",
    "JENKINS_URL",
    "GITHUB_ACTIONS",
    "GITLAB_CI",
    "ORT_DISABLE_TELEMETRY",
    "BUILDKITE",
    "CIRCLECI",
)
USE = """
import sys
from repzoo.engines import engine
from repzoo.zoo import embedded
import numpy as np
engine(sys.argv[1]).open(embedded.read("repghostnet_050.digits").model).run(np.zeros((1, 3, 32, 32), np.float32))
loaded = [name for name in sys.modules if name.split(".")[0] in ("openvino_telemetry", "aliyun") or name == "MNN.tools"]
sys.exit(f"loaded {loaded}" if loaded else 0)
"""


@pytest.mark.parametrize(
    ("name", "module"),
    [("onnxruntime", "onnxruntime"), ("openvino", "openvino"), ("mnn", "MNN")],
)
def test_using_an_engine_connects_to_nobody_and_leaves_nothing_at_home(
    name: str, module: str, tmp_path: Path
) -> None:
    pytest.importorskip(module, reason=f"{name} is not installed")
    environment = {key: value for key, value in os.environ.items() if key not in QUIET}
    environment |= {
        "HOME": str(tmp_path / "home"),
        "PYTHONPATH": str(SOURCE),
        "REPZOO_CACHE": str(tmp_path / "cache"),
    }
    (tmp_path / "home").mkdir()
    log = tmp_path / "calls"
    strace = shutil.which("strace")
    watched = (
        [strace, "-f", "-qq", "-e", "trace=connect,sendto,execve", "-o", str(log)]
        if strace
        else []
    )
    ran = subprocess.run(
        [*watched, sys.executable, "-c", USE, name],
        env=environment,
        capture_output=True,
        text=True,
        timeout=PROCESS_SECONDS,
        check=False,
    )
    assert (ran.returncode, ran.stderr, ran.stdout) == (0, "", "")
    assert list((tmp_path / "home").rglob("*")) == []
    if strace:
        calls = log.read_text().splitlines()
        assert not [line for line in calls if "connect(" in line or "sendto(" in line]
        # Python itself, and for MNN the child that converts (no pip, no shell): strace did see.
        programs = [
            line.split('"')[1]
            for line in calls
            if "execve(" in line and "ENOENT" not in line
        ]
        assert programs == [sys.executable] * (2 if name == "mnn" else 1)
