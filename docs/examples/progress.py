"""Masks of a folder with a progress bar: python progress.py model.onnx photos masks

Images that cannot be read are told at the end, and the others go on. Any bar will do: the stream is a plain iterator.
"""

import sys
from pathlib import Path

import click  # the runtime brings it; tqdm and rich are used in the same way

import runtime


def main(model: str, folder: str, out: str) -> None:
    paths = sorted(path for path in Path(folder).iterdir() if path.suffix.lower() in {".jpg", ".jpeg", ".png"})
    Path(out).mkdir(parents=True, exist_ok=True)
    failed = []

    def save(path: Path, result: runtime.Segmentation) -> Path:
        return result.save(Path(out) / f"{path.stem}.png")  # in the stream's threads, beside the network

    with runtime.Predictor(model) as predictor:
        answers = predictor.stream(paths, then=save, errors="yield")  # in the order of the paths, a few in memory
        with click.progressbar(zip(paths, answers, strict=True), length=len(paths), label="masks") as bar:
            for path, answer in bar:
                if isinstance(answer, runtime.UnetError):
                    failed.append(f"{path.name}: {answer}")
    print(f"{len(paths) - len(failed)} of {len(paths)} masks in {out}", *failed, sep="\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
