"""What the benchmark of the clients compares with: a client that does one thing after another.

It behaves as the recipe's (step 5): every image is decoded and scaled before the first request is
sent, each request waits for its answer, and the answers are printed at the end. Started as
``python -m pipeline.sequential_client HOST:PORT MODEL INPUT OUTPUT FOLDER``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import tritonclient.http as triton
from numpy.typing import NDArray
from PIL import Image

SIDE = 224


def main(url: str, model: str, input_name: str, output_name: str, folder: str) -> None:
    """Classify the files of a folder with the recipe's INCEPTION scaling."""
    files = sorted(path for path in Path(folder).iterdir() if path.is_file())
    images = [_preprocess(path) for path in files]
    client = triton.InferenceServerClient(url)
    answers = []
    for number, image in enumerate(images, 1):
        tensor = triton.InferInput(input_name, list(image.shape), "FP32")
        tensor.set_data_from_numpy(image)
        wanted = triton.InferRequestedOutput(output_name, class_count=1)
        answers.append(client.infer(model, [tensor], outputs=[wanted], request_id=str(number)))
    for number, answer in enumerate(answers, 1):
        print(f"Request {number}, batch size 1")
        for text in answer.as_numpy(output_name).reshape(-1):
            score, index, *label = text.decode().split(":")
            print(f"    {score} ({index}) = {':'.join(label)}")
    print("DONE")


def _preprocess(path: Path) -> NDArray[np.float32]:
    image = Image.open(path).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    return np.transpose(np.array(image).astype(np.float32) / 127.5 - 1, (2, 0, 1))


if __name__ == "__main__":
    main(*sys.argv[1:6])
