"""The numbered scripts of Vastai's pack: from compiling to the accuracy on the card."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from repzoo.artifact import Preprocess
from repzoo.packs.parts import Step, quoted
from repzoo.packs.vastai_images import DATALIST, EVALUATION, EvaluationImages

PRECISIONS = ("fp16", "int8")
# classification.py writes so many lines an image, whatever the number of classes.
TOP = 5
ZOO = ': "${VASTMODELZOO:?set it to a checkout of github.com/Vastai/VastModelZOO}"'
ABSOLUTE = "npz_absolute.txt"


def parameters_file(name: str) -> str:
    """Name of the vdsp_params file."""
    return f"{name}-vdsp_params.json"


@dataclass(frozen=True)
class CardSteps:
    """The scripts for one model.

    Attributes:
        name: of the model, as a file name.
        preprocess: of the model.
        evaluation: images for the card; None without any.
        has_classes: whether classification.py finds as many classes as it prints.
    """

    name: str
    preprocess: Preprocess
    evaluation: EvaluationImages | None
    has_classes: bool = True

    def all(self) -> list[Step]:
        """The scripts in the order of their use."""
        return [*self._before_the_card(), *self._on_the_card()]

    def _before_the_card(self) -> Iterator[Step]:
        yield Step(
            "check",
            "Show the model, and evaluate it in float where the images have classes",
            "查看模型；图片带类别时评估其浮点精度",
            self._check(),
        )
        for precision in PRECISIONS:
            compiled = f"{self.name}_{precision}"
            yield Step(
                f"build_{precision}",
                f"Compile to {precision}: deploy_weights/{compiled}/",
                f"编译为 {precision}：deploy_weights/{compiled}/",
                f"vamc compile {compiled}.yaml",
            )

    def _on_the_card(self) -> Iterator[Step]:
        if self.evaluation and self.has_classes:
            yield Step(
                "inference",
                "On the card: classification.py writes runstream_output/*.txt",
                "在加速卡上运行：classification.py 写出 runstream_output/*.txt",
                self._inference(),
            )
            yield Step(
                "evaluate",
                "Accuracy on the card, image by image against the float model",
                "加速卡上的精度，与浮点模型逐图比较",
                self._evaluate("runstream_output/{}.txt"),
            )
        yield Step(
            "perf",
            "Frames per second and latency on the card",
            "加速卡上的帧率与延迟",
            _each_precision(self._vamp("-i", 8, "-p", 1, "-b", 2)),
        )
        if self.evaluation:
            yield Step(
                "evaluate_vamp",
                "Accuracy on the card by vamp: the same as by classification.py",
                "用 vamp 测试精度，与 classification.py 效果一致",
                self._vamp_accuracy(),
            )

    def _check(self) -> str:
        show = quoted("repzoo", "info", f"{self.name}.onnx")
        if self.evaluation is None or not self.evaluation.labeled:
            return show
        return f"{show}\n{self._evaluate()}"

    def _inference(self) -> str:
        script = '"$VASTMODELZOO/cv/classification/common/vsx/classification.py"'
        arguments = quoted(
            *("--infer_mode", "sync"),
            *("--file_path", f"./{EVALUATION}"),
            *("--vdsp_params_info", f"./{parameters_file(self.name)}"),
            *("--label_txt", "./labels.txt"),
            *("--save_dir", "./runstream_output"),
            *("--device_id", 0),
        )
        loop = _each_precision(
            "# The script appends to the results of an earlier run.",
            'rm -f "runstream_output/$precision.txt"',
            f"python {script} {arguments} \\",
            f'  --model_prefix_path "deploy_weights/{self.name}_$precision/mod" \\',
            '  --save_result_txt "$precision.txt"',
        )
        return f"{ZOO}\n{loop}"

    def _vamp(self, *arguments: object) -> str:
        """vamp on the model of "$precision"."""
        shape = f"[3,{self.preprocess.height},{self.preprocess.width}]"
        rest = quoted(
            *("--vdsp_params", f"./{parameters_file(self.name)}"),
            *arguments,
            *("-s", shape),
        )
        return f'vamp -m "deploy_weights/{self.name}_$precision/mod" {rest}'

    def _vamp_accuracy(self) -> str:
        # One instance and one image at a time: results then come in the order of the list.
        run = self._vamp("-i", 1, "-p", 1, "-b", 1, "--datalist", ABSOLUTE)
        loop = _each_precision(
            'rm -rf "vamp_output_$precision"',
            'mkdir "vamp_output_$precision"',
            f'{run} --path_output "vamp_output_$precision"',
        )
        return "\n".join(
            [
                "# vamp wants absolute paths.",
                'while IFS= read -r line; do printf \'%s/%s\\n\' "$PWD" "$line"; done \\',
                f"  < {DATALIST} > {ABSOLUTE}",
                loop,
                f"{self._evaluate('vamp_output_{}')} --datalist {ABSOLUTE}",
            ]
        )

    def _evaluate(self, *results: str) -> str:
        """`repzoo evaluate` with the float model and `results`, patterns of a precision."""
        words = ["repzoo", "evaluate", f"{self.name}.onnx"]
        if self.evaluation and not self.evaluation.labeled:
            # Without classes, the float model's predictions take their place.
            words.insert(2, "--against")
        words += ["--data", EVALUATION, *_result_options(results)]
        return quoted(*words)


def _result_options(patterns: Sequence[str]) -> Iterator[str]:
    for pattern in patterns:
        for precision in PRECISIONS:
            yield from ("--result", pattern.format(precision))


def _each_precision(*commands: str) -> str:
    """A loop over both precisions, as "$precision"."""
    body = "\n".join(f"  {line}" for line in commands)
    return f"for precision in {' '.join(PRECISIONS)}; do\n{body}\ndone"
