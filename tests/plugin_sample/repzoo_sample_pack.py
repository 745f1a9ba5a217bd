"""A pack target in one file: a made-up tool that wants an ONNX file, an INI file and PNG images."""

from __future__ import annotations

from collections.abc import Iterator

from repzoo.artifact import Artifact
from repzoo.errors import InputError
from repzoo.packs.pack import PackFile, PackJob, pixel_images
from repzoo.packs.parts import (
    LANGUAGES,
    Step,
    file_name,
    label_files,
    pixel_mean,
    pixel_std,
    png,
    render_readme,
    step_files,
)

STEPS = [
    Step("build", "Quantize and compile", "量化并编译", "toyc compile toy.ini"),
    Step(
        "perf_on_board",
        "On the board: latency",
        "在板端运行：测量延迟",
        "toyrun model.toy",
    ),
]
README = {
    "en": """\
{% extends "readme.en.md.j2" %}
{% block board %}on the toy board{% endblock %}
{% block files %}
- `{{ name }}.onnx`: the model
- `toy.ini`: its configuration
- `images/`: {{ images }} images of {{ data|code }}
- `labels.txt`, where the model has labels
- `manifest.json`: the hash of each file
{% endblock %}
""",
    "zh": """\
{% extends "readme.zh.md.j2" %}
{% block board %}：玩具板{% endblock %}
{% block files %}
- `{{ name }}.onnx`：模型
- `toy.ini`：配置
- `images/`：{{ data|code }} 的 {{ images }} 张图片
- `labels.txt`（模型带标签时）
- `manifest.json`：每个文件的哈希
{% endblock %}
""",
}


class Toy:
    """The target `toy`. The tool reads RGB and computes (x - mean) / std of pixels 0..255."""

    name = "toy"
    scheme = "sophgo"  # number formats: symmetric int8, weights per channel

    def check(self, artifact: Artifact) -> None:
        """Refuse what this tool alone cannot take, before the work."""
        if artifact.require_preprocess().color != "RGB":
            raise InputError(
                f"{artifact.name} is not for RGB; toyc knows no other order"
            )

    def files(self, job: PackJob) -> Iterator[PackFile]:
        """(path in the pack, content) of each file."""
        artifact = job.artifact
        preprocess = artifact.require_preprocess()
        name = file_name(artifact.name)
        yield f"{name}.onnx", artifact.to_bytes()
        yield (
            "toy.ini",
            f"model = {name}.onnx\n"
            f"mean = {pixel_mean(preprocess)}\n"
            f"std = {pixel_std(preprocess)}\n",
        )
        for number, pixels in enumerate(pixel_images(job)):
            yield f"images/{number:04d}.png", png(pixels, preprocess.color)
        yield from step_files(STEPS)
        yield from label_files(job)
        for language, path in LANGUAGES.items():
            yield path, render_readme(job, language, README[language], STEPS)
