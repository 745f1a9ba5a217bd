"""What a fold and its certificate cost in time and memory, beside timm's fold and an export.

    python -m benchmarks.fold [MODEL] [ROUNDS]

MODEL is a catalog name (default: repvgg_b3). Each measurement has a process of its own, and the
kinds take turns, so that a busy machine is busy for all. Time leaves out imports and reading.
Memory is the process's peak, with reading and imports in it.
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
from itertools import product
from pathlib import Path

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
        """Fold and export."""
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


def measure_here(kind: str, name: str, path: Path) -> Reading:
    """Run in this process: wall and CPU seconds, and the peak memory in bytes."""
    work = work_for(kind, name, path)
    wall = time.perf_counter()
    cpu = time.process_time()
    work()
    return {
        "wall": time.perf_counter() - wall,
        "cpu": time.process_time() - cpu,
        # The system counts in KiB.
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0,
    }


def measure_apart(kind: str, name: str, path: Path) -> Reading:
    """`measure_here` in a process of its own, whose peak is its own."""
    command = [sys.executable, "-m", "benchmarks.fold", "--one", kind, name, str(path)]
    process = subprocess.run(command, check=True, capture_output=True, text=True)
    last_line = process.stdout.splitlines()[-1]
    reading: Reading = json.loads(last_line)
    return reading


def export(name: str, path: Path) -> None:
    """Write the training form, in a process whose memory does not count."""
    code = (
        "import sys; from pathlib import Path; from repzoo import verbs; "
        "verbs.export(sys.argv[1]).save(Path(sys.argv[2]))"
    )
    subprocess.run([sys.executable, "-c", code, name, str(path)], check=True)


def median_text(values: list[float], unit: str) -> str:
    """Median and interval of `values`."""
    median = stats.median_interval(values)
    return f"{median.value:.2f} {unit} ({median.low:.2f} .. {median.high:.2f})"


def print_report(name: str, size: int, readings: dict[str, list[Reading]]) -> None:
    """Print every kind's time and memory, and the ratios of timm's times to ours."""
    rounds = len(readings["fold"])
    print(
        f"{name}: {size / 1e6:,.0f} MB, {rounds} rounds; median and interval (the range where "
        "rounds are few)"
    )
    for kind in KINDS:
        rows = readings[kind]
        texts = []
        for key in ("wall", "cpu"):
            values = [row[key] for row in rows]
            texts.append(median_text(values, f"s {key}"))
        peaks = [row["peak"] / size for row in rows]
        texts.append(median_text(peaks, "x the model's size at the peak"))
        print(f"{kind:12}", *texts, sep="  ")
    for kind, key in product(("fold", "certificate"), ("wall", "cpu")):
        pairs = zip(readings["timm"], readings[kind], strict=True)
        ratios = [theirs[key] / ours[key] for theirs, ours in pairs]
        text = median_text(ratios, f"times the {key} of {kind}")
        print(f"timm + export takes {text}")


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
                readings[kind].append(measure_apart(kind, name, path))
        print_report(name, path.stat().st_size, readings)


if __name__ == "__main__":
    if "--one" in sys.argv:
        reading = measure_here(sys.argv[2], sys.argv[3], Path(sys.argv[4]))
        print(json.dumps(reading))
    else:
        main()
