"""What the real server answers is what ONNX Runtime computes in this process."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import deploy_tiny, logits, photo_tensors

from pipeline import server
from pipeline.client import TritonClient
from provision.embedded_server import ServerInstallation
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
