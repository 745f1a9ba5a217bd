"""Classify an image, or a whole folder of them, on an RDK X5.

    python3 main.py                                     the sample image
    python3 main.py --test-img cat.jpg --img-save-path cat_result.jpg
    python3 main.py --image-dir validation --result-path result.txt

The last writes what `repzoo evaluate --result result.txt` reads.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
library: Any = importlib.import_module("classifier")


def arguments() -> argparse.Namespace:
    """The command line; every option has a default that works in the pack."""
    parser = argparse.ArgumentParser(description="Classify images on an RDK X5.")
    parser.add_argument("--config", default=str(HERE / "model.json"), help="Settings.")
    parser.add_argument(
        "--label-file", default=str(HERE / "labels.txt"), help="Class names."
    )
    parser.add_argument("--test-img", default=str(HERE / "sample.png"), help="Image.")
    parser.add_argument(
        "--img-save-path", default="result.png", help="Image with the classes."
    )
    parser.add_argument(
        "--image-dir", default="", help="Classify all images below this folder."
    )
    parser.add_argument(
        "--result-path", default="result.txt", help="Result of --image-dir."
    )
    parser.add_argument("--topk", type=int, default=5, help="Number of classes.")
    parser.add_argument("--priority", type=int, default=0, help="Priority, 0 to 255.")
    parser.add_argument(
        "--bpu-cores", type=int, nargs="+", default=[0], help="BPU cores to use."
    )
    return parser.parse_args()


def classify_folder(
    classifier: Any, folder: str, result_path: str, top: int
) -> tuple[int, int]:
    """Write the result of all images below `folder`: (images, those that are unreadable)."""
    images = unreadable = 0
    # Written aside: a result that was cut off must not be taken for a whole one.
    aside = Path(f"{result_path}.part")
    with aside.open("w", encoding="utf-8") as file:
        for path in library.image_paths(folder):
            try:
                image = library.read_image(path, classifier.config.orientation)
            except ValueError as error:
                print(error, file=sys.stderr)
                unreadable += 1
                continue
            best = classifier.predict(image, top)
            file.write(library.result_lines(path, best, classifier.config))
            images += 1
    aside.replace(result_path)
    return images, unreadable


def main() -> None:
    """Run what the command line asks for."""
    options = arguments()
    config = library.Config.read(options.config, options.label_file)
    classifier = library.Classifier(config)
    classifier.set_scheduling_params(options.priority, options.bpu_cores)
    if options.image_dir:
        images, unreadable = classify_folder(
            classifier, options.image_dir, options.result_path, options.topk
        )
        print(f"{options.result_path}: {images} images, {unreadable} unreadable")
        return
    image = library.read_image(options.test_img, config.orientation)
    best = classifier.predict(image, options.topk)
    for rank, (index, probability) in enumerate(best, 1):
        print(f"{rank}. {config.name(index)} ({index}): {probability:.4f}")
    cv2: Any = importlib.import_module("cv2")
    cv2.imwrite(options.img_save_path, library.draw(image, best, config))
    print(f"The picture is in {options.img_save_path}")


if __name__ == "__main__":
    main()
