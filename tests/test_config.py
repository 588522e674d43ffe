"""Model configurations: the readable source, and what is deployed of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from helpers import SOURCE
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.grpc import model_config_pb2 as triton

from pipeline.config import deployed_config, read_config, read_labels, to_text
from pipeline.engines import OnnxRuntimeEngine
from provision.cores import available_cores
from provision.errors import ConfigError
from provision.layout import REPOSITORY

ENGINE = OnnxRuntimeEngine.choose(instances=2, threads=3)


def deployed(
    source: Any = None, *, name: str = "resnet50", side: int = 224, size: int = 8, own: bool = True
) -> Any:
    return deployed_config(
        source or read_config(SOURCE / "config.pbtxt"),
        name=name,
        side=side,
        classes=1000,
        max_batch_size=size,
        engine=ENGINE,
        own_source=own,
    )


def test_source_of_resnet50_is_what_the_recipe_asks() -> None:
    source = read_config(SOURCE / "config.pbtxt")
    assert (source.name, source.max_batch_size) == ("resnet50", 8)
    assert [(t.name, list(t.dims)) for t in source.input] == [("input", [3, 224, 224])]
    assert [(t.name, list(t.dims)) for t in source.output] == [("output", [1000])]
    assert source.HasField("dynamic_batching")
    assert source.output[0].label_filename == "labels.txt"


def test_labels_of_resnet50_are_one_a_class_in_upper_case() -> None:
    labels = read_labels(SOURCE / "labels.txt", classes=1000)
    assert all(label == label.upper() == label.strip() for label in labels)
    assert (labels[0], labels[504], labels[817]) == ("TENCH", "COFFEE MUG", "SPORTS CAR")


def test_default_has_a_batch_dimension_and_dynamic_batching() -> None:
    expected = """
        name: "resnet50"
        max_batch_size: 8
        input {
          name: "input" data_type: TYPE_FP32 format: FORMAT_NCHW
          dims: 3 dims: 224 dims: 224
        }
        output { name: "output" data_type: TYPE_FP32 dims: 1000 label_filename: "labels.txt" }
        instance_group { count: 2 kind: KIND_CPU }
        dynamic_batching { }
        parameters { key: "intra_op_num_threads" value { string_value: "3" } }
        backend: "python"
    """
    assert deployed() == text_format.Parse(expected, triton.ModelConfig())


def test_size_0_is_the_recipes_form() -> None:
    config = deployed(size=0)
    (image,), (logits,) = config.input, config.output
    assert config.max_batch_size == 0
    assert (list(image.dims), list(image.reshape.shape)) == ([3, 224, 224], [1, 3, 224, 224])
    assert (list(logits.dims), list(logits.reshape.shape)) == ([1000], [1, 1000])
    assert logits.label_filename == "labels.txt"
    assert not config.HasField("dynamic_batching")


def test_source_in_the_recipes_form_can_be_deployed_with_batches() -> None:
    source = deployed(size=0)
    source.platform = "tensorrt_plan"
    config = deployed(source)
    assert not config.input[0].HasField("reshape")
    assert not config.output[0].HasField("reshape")
    assert (config.platform, config.backend) == ("", "python")
    assert len(config.instance_group) == 1


@settings(deadline=None)
@given(
    st.integers(0, 1000),
    st.integers(1, 600),
    st.integers(1, 64),
    st.integers(1, 64),
    st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,40}", fullmatch=True),
)
def test_what_is_deployed_parses_back_equal(
    size: int, side: int, instances: int, threads: int, name: str
) -> None:
    config = deployed_config(
        read_config(SOURCE / "config.pbtxt"),
        name=name,
        side=side,
        classes=1000,
        max_batch_size=size,
        engine=OnnxRuntimeEngine.choose(instances=instances, threads=threads),
        own_source=False,
    )
    again = text_format.Parse(to_text(config), triton.ModelConfig())
    assert again == config
    assert (again.name, again.max_batch_size) == (name, size)
    assert list(again.input[0].dims) == [3, side, side]
    assert again.instance_group[0].count == instances


def test_borrowed_source_takes_the_models_shape() -> None:
    assert list(deployed(name="inception_v3", side=299, own=False).input[0].dims) == [3, 299, 299]


def test_own_source_of_another_shape_is_an_error() -> None:
    with pytest.raises(
        ConfigError, match=r"input the dims \[3, 224, 224\], and the model has"
    ) as e:
        deployed(side=299)
    assert "model_repository/resnet50/config.pbtxt" in e.value.fix


def test_source_of_another_form_is_an_error() -> None:
    source = read_config(SOURCE / "config.pbtxt")
    source.input.add(name="second")
    with pytest.raises(ConfigError, match="2 inputs and 1 outputs"):
        deployed(source)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('name: "resnet50"\nbogus: 1\n', "2:1"),
        ("input [", "is not a model configuration"),
        (b"\xff\xfe", "cannot be read"),
        (None, "cannot be read"),
    ],
)
def test_broken_source_is_named(tmp_path: Path, text: str | bytes | None, said: str) -> None:
    file = tmp_path / "config.pbtxt"
    if text is not None:
        file.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(ConfigError, match=said) as caught:
        read_config(file)
    assert str(file) in caught.value.what


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("A\nB\n", "has 2 labels, and the model has 3 classes"),
        ("A\nB\nC\nD", "has 4 labels"),
        ("", "has 0 labels"),
        ("A\n \nC\n", "line 2 of .* is empty"),
        (b"\xff\n\n\n", "cannot be read"),
        (None, "cannot be read"),
    ],
)
def test_labels_that_do_not_fit(tmp_path: Path, text: str | bytes | None, said: str) -> None:
    file = tmp_path / "labels.txt"
    if text is not None:
        file.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(ConfigError, match=said):
        read_labels(file, classes=3)


@settings(deadline=None)
@given(st.text(max_size=60), st.integers(0, 6))
def test_any_label_file_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, text: str, classes: int
) -> None:
    file = tmp_path_factory.getbasetemp() / "labels.txt"
    file.write_text(text)
    try:
        labels = read_labels(file, classes=classes)
    except ConfigError:
        return
    assert len(labels) == classes
    assert all(label.strip() for label in labels)


def test_threads_share_the_cores_there_are() -> None:
    cores = available_cores()
    assert OnnxRuntimeEngine.choose(instances=None, threads=None).threads == cores
    assert OnnxRuntimeEngine.choose(instances=1000, threads=None).threads == 1
    chosen = OnnxRuntimeEngine.choose(instances=2, threads=5)
    assert (chosen.instances, chosen.threads) == (2, 5)
    assert f"2 instance(s) of 5 thread(s) on {cores} core(s)" in chosen.reason


def test_engine_deploys_the_models_program_as_it_is(tmp_path: Path) -> None:
    files = ENGINE.files(tmp_path / "x.onnx")
    assert files["model.onnx"] == tmp_path / "x.onnx"
    assert files["model.py"] == REPOSITORY / "pipeline" / "onnxruntime_model.py"
