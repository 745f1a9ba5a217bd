"""The numbered steps of a pack for the RDK X5, on the PC and on the board."""

from __future__ import annotations

from repzoo.artifact import Artifact
from repzoo.packs.parts import Step, file_name, quoted
from repzoo.packs.rdk_x5_yaml import LOAD, binary_path, quantized_path

# The environment of `repzoo toolchains rdk-x5 --install` goes first, where it is there.
TOOLS = """\
tools="${XDG_CACHE_HOME:-$HOME/.cache}/repzoo/toolchains/rdk-x5/bin"
if [ -d "$tools" ]; then PATH="$tools:$PATH"; fi
"""
BUILT = """\
model=${{1:-{path}}}
if [ ! -f "$model" ]; then
  echo "$model is not there; {advice}" >&2
  exit 2
fi
"""
# The public documents give latency at one thread, and frames per second at four and eight.
PERF = """\
for threads in 1 4 8; do
  hrt_model_exec perf --model_file "$model" --model_name "" --core_id 0 --frame_count 200 \\
    --perf_time 0 --thread_num "$threads" --profile_path . | tee "perf_$threads.log"
done
"""
ON_BOARD = """\
images=${1:?give the folder with the images}
python3 main.py --image-dir "$images" --result-path result.txt
echo "On the PC: repzoo evaluate --result result.txt --data DIR"
"""
EVALUATE = """\
data=${1:?give the folder with the labeled images}
shift
repzoo evaluate "$PWD" --engine rdk-x5 --data "$data" "$@"
"""


def steps(artifact: Artifact, load: bool) -> list[Step]:
    """The steps in their order; those of the file with its own scales only with `load`."""
    name = file_name(artifact.name)
    listed = [
        Step(
            "check",
            "On the PC: show which operators run on the BPU",
            "在 PC 上：查看哪些算子在 BPU 上运行",
            TOOLS
            + "hb_mapper checker --model-type onnx --march bayes-e "
            + quoted("--model", f"{name}.onnx"),
        ),
        Step(
            "build",
            "On the PC: quantize and compile; the .bin is in model_output/",
            "在 PC 上：量化并编译；.bin 在 model_output/ 中",
            TOOLS + _makertbin(name),
        ),
    ]
    if load:
        step = Step(
            "build_load",
            "On the PC: the same with the scales of repzoo; the .bin is in model_output_load/",
            "在 PC 上：改用 repzoo 的量化参数编译；.bin 在 model_output_load/ 中",
            TOOLS + _makertbin(f"{name}{LOAD}"),
        )
        listed.append(step)
    return [*listed, *_evaluation_steps(artifact)]


def _makertbin(name: str) -> str:
    return "hb_mapper makertbin --model-type onnx " + quoted("--config", f"{name}.yaml")


def _evaluation_steps(artifact: Artifact) -> list[Step]:
    quantized = BUILT.format(
        path=quantized_path(artifact), advice="run 02_build.sh first"
    )
    compiled = BUILT.format(
        path=binary_path(artifact),
        advice="build it on the PC and copy the folder to the board",
    )
    return [
        Step(
            "infer",
            "On the PC: classify the sample image with hb_mapper's quantized model",
            "在 PC 上：用 hb_mapper 的量化模型对示例图片分类",
            TOOLS + quantized + 'python3 infer.py --model "$model" --image sample.png',
        ),
        Step(
            "evaluate",
            "On the PC: Top-1 of hb_mapper's quantized model; give the folder with the images",
            "在 PC 上：评测 hb_mapper 量化模型的 Top-1；参数为图片文件夹",
            EVALUATE,
        ),
        Step(
            "perf_on_board",
            "On the board: latency and frames per second with 1, 4 and 8 threads",
            "在板端：1、4、8 线程的延迟和帧率",
            compiled + PERF,
        ),
        Step(
            "evaluate_on_board",
            "On the board: classify a folder of images into result.txt",
            "在板端：对文件夹中的图片分类，结果写入 result.txt",
            ON_BOARD,
        ),
    ]
