"""A small log of the form that hb_mapper writes, for tests."""

from __future__ import annotations

RULE = "=" * 100
LINE = "-" * 100
NODES = [
    ("HZ_PREPROCESS_FOR_data", "BPU", "id(0)", "HzSQuantizedPreprocess", "0.999977", "127.0", "int8"),
    ("/stem/Conv", "BPU", "id(0)", "HzSQuantizedConv", "0.998979", "2.70176", "int8"),
    ("...long name/gate/HardSigmoid", "BPU", "id(0)", "HzLut", "0.999992", "3.0", "int16"),
    ("/fc/Gemm", "BPU", "id(0)", "HzSQuantizedConv", "0.999855", "12.5", "int8"),
    ("/fc/Gemm_reshape", "CPU", "--", "Reshape", "0.999855", "--", "float"),
]  # fmt: skip


def _stamp(message: str, terminal: bool) -> str:
    time = "2026-03-04 05:06:07,890"
    if terminal:
        return f"{time} \x1b[92mINFO\x1b[0m {message}"
    return f"{time} file: tool.py func: tool line No: 12 {message}"


def hb_mapper_log(
    model: str = "tiny.onnx",
    input_name: str = "data",
    output_name: str = "logits",
    classes: int = 10,
    size: int = 32,
    terminal: bool = False,
    fps: str = "3251.4",
    latency: str = "307.6 us",
    command: str = "makertbin",
) -> str:
    """The log; its estimate is `fps` and `latency`, its nodes are NODES."""
    is_checker = command == "checker"
    begin = "Start model checking...." if is_checker else "Start Model Convert...."
    end = "End model checking...." if is_checker else "End Model Convert"
    head = [
        "Start hb_mapper....",
        "hbdk version 3.49.15",
        "horizon_nn version 1.1.0",
        "hb_mapper version 1.24.3",
        begin,
        f"Using onnx model file: /somebody/elses/{model}",
        "The specified model compilation architecture: bayes-e.",
        "Input ONNX Model Information:",
    ]
    block = [
        "ONNX IR version:          7",
        "Graph input:",
        f"    {input_name}:      shape=[1, 3, {size}, {size}], dtype=FLOAT32",
        "Graph output:",
        f"    {output_name}:     shape=[1, {classes}], dtype=FLOAT32",
    ]
    middle = [
        "Select max-percentile:percentile=0.99995 method.",
        f"FPS={fps}, latency = {latency}, DDR = 1279296 bytes   (see main_graph_subgraph_0.html)",
        "The main quantized node information:",
    ]
    columns = (
        "Node",
        "ON",
        "Subgraph",
        "Type",
        "Cosine Similarity",
        "Threshold",
        "DataType",
    )
    table = [RULE, _row(columns), LINE, *(_row(row) for row in NODES)]
    outputs = [
        RULE,
        "Output      Cosine Similarity  L1 Distance  L2 Distance  Chebyshev Distance",
        LINE,
        f"{output_name}      0.999855           0.021164     0.008179     0.053581",
    ]
    tail = [
        "End to Horizon NN Model Convert.",
        "output_model_file_prefix: tiny_nv12",
        end,
    ]
    lines = [_stamp(message, terminal) for message in head]
    lines += block
    lines += [_stamp(message, terminal) for message in middle]
    lines += table
    lines.append(_stamp("The quantized model output:", terminal))
    lines += outputs
    lines += [_stamp(message, terminal) for message in tail]
    return "\n".join(lines) + "\n"


def _row(cells: tuple[str, ...]) -> str:
    return "  ".join(f"{cell:<20}" for cell in cells)
