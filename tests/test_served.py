"""What the real server answers is what ONNX Runtime computes in this process."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from helpers import deploy_tiny, logits, photo_tensors
from numpy.typing import NDArray

from pipeline import server
from pipeline.client import TritonClient
from provision.installation import ServerInstallation
from provision.layout import Layout


@pytest.mark.parametrize("max_batch_size", [8, 0])
def test_served_logits_are_those_of_onnx_runtime_to_the_last_bit(
    layout: Layout, installation: ServerInstallation, max_batch_size: int
) -> None:
    manifest = deploy_tiny(layout, max_batch_size=max_batch_size)
    model = layout.models / "tiny" / "1" / "model.onnx"
    with server.temporary(layout, installation) as record, TritonClient(record.url) as client:
        for tensor in photo_tensors().values():
            image = tensor[np.newaxis]
            served = client.logits("tiny", image if max_batch_size else tensor)
            assert np.array_equal(served.reshape(-1), logits(model, image)[0])
    assert manifest.version == 1


def test_what_others_ask_at_the_same_time_changes_no_bit(
    layout: Layout, installation: ServerInstallation
) -> None:
    deploy_tiny(layout, threads=2)
    model = layout.models / "tiny" / "1" / "model.onnx"
    images = np.random.default_rng(0).standard_normal((24, 1, 3, 32, 32), np.float32)
    with server.temporary(layout, installation) as record:

        def ask(image: NDArray[np.float32]) -> NDArray[np.float32]:
            with TritonClient(record.url) as client:
                return client.logits("tiny", image)

        with ThreadPoolExecutor(8) as pool:
            served = list(pool.map(ask, images))
    for image, answer in zip(images, served, strict=True):
        assert np.array_equal(answer, logits(model, image))
