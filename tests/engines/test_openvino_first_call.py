"""The first calls of OpenVINO in a process, made by two threads at once."""

from __future__ import annotations

import subprocess
import sys

import pytest

from repzoo.processor import available_cores

# Without what engines/openvino.py does at its import, one process in four waits forever.
PROCESSES = 8
SECONDS = 30

FIRST_CALLS = """
import sys
import threading

import numpy as np
import openvino as ov
from openvino import opset13

import repzoo.engines.openvino

given = opset13.parameter([1, 8], np.float32)
model = ov.Model([opset13.relu(given)], [given])
requests = [ov.Core().compile_model(model, "CPU").create_infer_request() for _ in range(2)]
barrier = threading.Barrier(2)
inputs = np.ones((1, 8), np.float32)


def call(request):
    barrier.wait()
    request.infer([inputs], share_inputs=True)


threads = [threading.Thread(target=call, args=(request,)) for request in requests]
sys.setswitchinterval(1e-6)  # seconds: threads change as often as they can
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


def test_two_threads_make_the_first_calls_of_a_process() -> None:
    pytest.importorskip("openvino")
    command = [sys.executable, "-c", FIRST_CALLS]
    for _ in range(0, PROCESSES, available_cores()):
        batch = [subprocess.Popen(command) for _ in range(available_cores())]
        try:
            codes = [process.wait(timeout=SECONDS) for process in batch]
        finally:
            for process in batch:
                process.kill()
        assert codes == [0] * len(batch)
