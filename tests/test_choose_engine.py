"""Which engine runs a model, and what is said of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from gpu_host import server_built_with

from pipeline.choose_engine import Facts, choose, read_facts
from provision.errors import HostError
from provision.gpu import Device
from provision.layout import Layout

L4 = Device("NVIDIA L4", "23034 MiB", "8.9")
NO_PYTHON = "no Python of this host has TensorRT 10.13.3, which the server was built with"
BARE = Facts(driver="", devices=(), server=None, tensorrt=())


@pytest.fixture
def whole(layout: Layout) -> Facts:
    """A host that has all that TensorRT needs."""
    return Facts("580.82.07", (L4,), server_built_with(layout, "10.13.3"), ("8.6.1", "10.13.3.9"))


def test_auto_takes_tensorrt_where_all_is_there(whole: Facts) -> None:
    choice = choose("auto", whole)
    assert choice.engine == "tensorrt"
    assert choice.reason == "NVIDIA L4, TensorRT 10.13.3 and a server built with it are there"
    assert choose("tensorrt", whole).reason.startswith("asked for; NVIDIA L4")
    assert choose("onnxruntime", whole).engine == "onnxruntime"


def test_auto_says_why_not(whole: Facts, layout: Layout) -> None:
    assert choose("auto", BARE).reason == (
        "not TensorRT, since there is no NVIDIA driver with a GPU (nvidia-smi shows none); "
        "no server is built here, so none has a TensorRT backend"
    )
    for facts, reason in (
        (replace(whole, devices=()), "the driver shows no GPU"),
        (replace(whole, server=None), "no server is built here, so none has a TensorRT backend"),
        (
            replace(whole, driver="470.256.02"),
            "the driver 470.256.02 is too old for the server's CUDA, which needs 580",
        ),
        (
            replace(whole, tensorrt=()),
            NO_PYTHON,
        ),
        (
            replace(whole, tensorrt=("10.9.0.34",)),
            f"{NO_PYTHON} (there is 10.9.0.34)",
        ),
        (
            replace(whole, server=server_built_with(layout, "")),
            "the server built here has no TensorRT backend",
        ),
    ):
        choice = choose("auto", facts)
        assert (choice.engine, choice.reason) == ("onnxruntime", f"not TensorRT, since {reason}")


def test_asking_for_tensorrt_never_falls_back(whole: Facts) -> None:
    with pytest.raises(HostError) as caught:
        choose("tensorrt", BARE)
    error = caught.value
    assert error.what.startswith("TensorRT cannot serve here: there is no NVIDIA driver")
    assert error.cause.startswith("Missing besides: no server is built here")
    assert "`--engine onnxruntime` serves the model on the CPU" in error.fix
    fixes = set()
    for facts in (
        BARE,
        replace(whole, devices=()),
        replace(whole, driver="470.256.02"),
        replace(whole, server=None),
        replace(whole, tensorrt=()),
    ):
        with pytest.raises(HostError) as caught:
            choose("tensorrt", facts)
        fixes.add(caught.value.fix)
    assert len(fixes) == 5  # a sentence and a fix of its own for each


def test_the_facts_of_a_bare_host(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert read_facts(layout) == BARE
