"""What a fold and its certificate cost in time and memory, beside timm's own fold followed by
an export.

    python -m benchmarks.fold [MODEL] [ROUNDS]

MODEL is a catalog name (repvgg_b3). Each measurement has a process of its own, and rounds take
turns, so that a busy machine is busy for all. Time leaves out imports and reading; memory is
the process's peak, with reading and imports in it.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from repzoo.measure import stats

ROUNDS = 3
KINDS = ("read", "fold", "certificate", "timm")
Reading = dict[str, float]


def work_for(kind: str, name: str, path: Path) -> Callable[[], object]:
    """What is timed, with all that it needs already loaded."""
    if kind == "timm":
        return reparameterize(name)
    from repzoo import verbs
    from repzoo.artifact import Artifact
    from repzoo.graph.fold.engine import fold

    artifact = Artifact.read(path)
    jobs: dict[str, Callable[[], object]] = {
        "read": lambda: None,
        "fold": lambda: fold(artifact.model),
        "certificate": lambda: verbs.fold(artifact),
    }
    return jobs[kind]


def reparameterize(name: str) -> Callable[[], object]:
    """timm's fold and torch's export of the result."""
    import io
    import warnings

    import timm
    import timm.utils
    import torch

    module = timm.create_model(name).eval()

    def run() -> None:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            folded = timm.utils.reparameterize_model(module)
            torch.onnx.export(
                folded,
                (torch.zeros(1, 3, 224, 224),),
                io.BytesIO(),
                dynamo=False,
                opset_version=17,
            )

    return run


def one(kind: str, name: str, path: Path) -> Reading:
    """Run in a process of its own: wall and CPU seconds, and the peak in bytes."""
    work = work_for(kind, name, path)
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    taken = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    return {
        **taken,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0,
    }


def measured(kind: str, name: str, path: Path) -> Reading:
    command = [sys.executable, "-m", "benchmarks.fold", "--one", kind, name, str(path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    reading: Reading = json.loads(done.stdout.splitlines()[-1])
    return reading


def export(name: str, path: Path) -> None:
    """The training form, in a process whose memory does not count."""
    code = "import sys; from pathlib import Path; from repzoo import verbs; verbs.export(sys.argv[1]).save(Path(sys.argv[2]))"
    subprocess.run([sys.executable, "-c", code, name, str(path)], check=True)


def shown(values: list[float], unit: str) -> str:
    found = stats.median_interval(values)
    return f"{found.value:.2f} {unit} ({found.low:.2f} .. {found.high:.2f})"


def report(name: str, size: int, readings: dict[str, list[Reading]]) -> None:
    print(
        f"{name}: {size / 1e6:,.0f} MB, {len(readings['fold'])} rounds; median and interval "
        "(the range where rounds are few)"
    )
    for kind in KINDS:
        seconds = (
            f"{shown([item[key] for item in readings[kind]], 's ' + key)}"
            for key in ("wall", "cpu")
        )
        peak = shown(
            [item["peak"] / size for item in readings[kind]],
            "x the model's size at the peak",
        )
        print(f"{kind:12}", *seconds, peak, sep="  ")
    for kind in ("fold", "certificate"):
        for key in ("wall", "cpu"):
            pairs: list[Any] = list(zip(readings["timm"], readings[kind], strict=True))
            print(
                "timm + export takes "
                f"{shown([theirs[key] / ours[key] for theirs, ours in pairs], f'times the {key} of {kind}')}"
            )


def main() -> None:
    """Export, then measure all kinds in turns."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", default="repvgg_b3", metavar="MODEL")
    parser.add_argument("rounds", nargs="?", type=int, default=ROUNDS, metavar="ROUNDS")
    options = parser.parse_args()
    name, rounds = options.model, options.rounds
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export(name, path)
        readings: dict[str, list[Reading]] = {kind: [] for kind in KINDS}
        for _ in range(rounds):
            for kind in KINDS:
                readings[kind].append(measured(kind, name, path))
        report(name, path.stat().st_size, readings)


if __name__ == "__main__":
    if "--one" in sys.argv:
        print(json.dumps(one(sys.argv[2], sys.argv[3], Path(sys.argv[4]))))
    else:
        main()
