"""Model configurations: from the readable source to what is deployed (recipe step 4).

https://github.com/triton-inference-server/server/blob/main/docs/user_guide/model_configuration.md
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as triton

from pipeline.engines import Engine
from provision.errors import ConfigError


def read_config(path: Path) -> Any:
    """A ``ModelConfig`` from a ``config.pbtxt``.

    Raises:
        ConfigError: It is not one.
    """
    try:
        return text_format.Parse(path.read_text(), triton.ModelConfig())
    except text_format.ParseError as error:
        raise ConfigError(
            f"{path} is not a model configuration: {error}", fix="correct the line that is named"
        ) from None
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None


def read_labels(path: Path, *, classes: int) -> list[str]:
    """The class names from a label file, one a line.

    Raises:
        ConfigError: Their number is not that of the model's classes, or one is empty.
    """
    try:
        labels = path.read_text().splitlines()
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None
    fix = f"put one label a line into {path}, in the order of the model's classes"
    if len(labels) != classes:
        raise ConfigError(
            f"{path} has {len(labels)} labels, and the model has {classes} classes", fix=fix
        )
    if not all(label.strip() for label in labels):
        empty = next(i for i, label in enumerate(labels, 1) if not label.strip())
        raise ConfigError(f"line {empty} of {path} is empty", fix=fix)
    return labels


def deployed_config(
    source: Any,
    *,
    name: str,
    side: int,
    classes: int,
    max_batch_size: int,
    engine: Engine,
    own_source: bool,
) -> Any:
    """The configuration to deploy: the source, fitted to the model, with the engine's part.

    With a `max_batch_size` of 0 it takes the recipe's form: clients send one image without a batch
    dimension, and ``reshape`` adds it for the model.

    Args:
        source: The readable source, as :func:`read_config` gives it.
        name: The model's name in the repository.
        side: The side of the square input, in pixels.
        classes: The number of classes.
        max_batch_size: The largest batch a request may have; 0 for none.
        engine: What will run it.
        own_source: Whether the source was written for this model, so that a disagreement with it
            is an error; otherwise it lends its form and takes the model's shapes.

    Raises:
        ConfigError: The source disagrees with the model.
    """
    config = triton.ModelConfig()
    config.CopyFrom(source)
    config.name = name
    if len(config.input) != 1 or len(config.output) != 1:
        raise ConfigError(
            f"the configuration of {name} has {len(config.input)} inputs and "
            f"{len(config.output)} outputs, not one of each",
            fix=f"correct model_repository/{name}/config.pbtxt",
        )
    shapes = (
        ("input", config.input[0], [3, side, side]),
        ("output", config.output[0], [classes]),
    )
    for wanted, tensor, dims in shapes:
        if (tensor.name, tensor.data_type) != (wanted, triton.TYPE_FP32):
            raise ConfigError(
                f"the configuration of {name} has the tensor {tensor.name} of "
                f"{triton.DataType.Name(tensor.data_type)}, where the model has {wanted} of "
                "TYPE_FP32",
                fix=f"correct model_repository/{name}/config.pbtxt",
            )
        if own_source and list(tensor.dims) != dims:
            raise ConfigError(
                f"the configuration of {name} gives {tensor.name} the dims {list(tensor.dims)}, "
                f"and the model has {dims}",
                fix=f"correct model_repository/{name}/config.pbtxt",
            )
        tensor.dims[:] = dims
        tensor.ClearField("reshape")
        if max_batch_size == 0:
            tensor.reshape.shape[:] = [1, *dims]
    config.max_batch_size = max_batch_size
    if max_batch_size == 0:
        config.ClearField("dynamic_batching")
    engine.configure(config)
    return config


def to_text(config: Any) -> str:
    """A configuration in protobuf's text format, sure to be read as the same one.

    Raises:
        ConfigError: It is not.
    """
    text = str(text_format.MessageToString(config))
    if text_format.Parse(text, triton.ModelConfig()) != config:
        raise ConfigError("the configuration does not survive being written", fix="report this")
    return text


def _unreadable(path: Path, error: Exception) -> ConfigError:
    return ConfigError(f"{path} cannot be read: {error}", fix="put it back, as UTF-8 text")
