"""The ONNX graph that a plan is made from: what it takes and gives, and whether it is whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.plan_options import Batches
from provision.errors import ConversionError, UsageError

DYNAMIC = -1


@dataclass(frozen=True)
class Tensor:
    """An input or output: its shape has -1 for what is dynamic."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        """The tensor as plain data."""
        return {"name": self.name, "dtype": self.dtype, "shape": list(self.shape)}


@dataclass(frozen=True)
class Graph:
    """A graph's inputs and outputs."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]

    @property
    def dynamic(self) -> bool:
        """Whether its batch is open."""
        return any(DYNAMIC in tensor.shape for tensor in self.inputs)

    def profile(self, batches: Batches | None) -> dict[str, list[list[int]]]:
        """The least, best and largest shape of each input; empty where nothing is dynamic.

        Raises:
            UsageError: Batches are missing, or do not fit; or more than the batch is dynamic.
        """
        for tensor in self.inputs:
            if DYNAMIC in tensor.shape[1:]:
                raise UsageError(
                    f"the input {tensor.name} has the shape {list(tensor.shape)}, in which more "
                    "than the batch is dynamic",
                    fix="fix the other dimensions when exporting",
                )
        if not self.dynamic:
            return self._fixed(batches)
        if batches is None:
            raise UsageError(
                "the graph has a dynamic batch, and no profile is given for it",
                fix="give the batches that it will serve: `--batch MIN:OPT:MAX`, such as 1:4:8",
            )
        sizes = (batches.least, batches.best, batches.most)
        return {
            tensor.name: [
                [size if dim == DYNAMIC else dim for dim in tensor.shape] for size in sizes
            ]
            for tensor in self.inputs
        }

    def _fixed(self, batches: Batches | None) -> dict[str, list[list[int]]]:
        sizes = {tensor.shape[0] for tensor in self.inputs if tensor.shape}
        if batches and sizes != set(batches.each):
            fixed = ", ".join(map(str, sorted(sizes)))
            raise UsageError(
                f"the graph has a fixed batch of {fixed}, and --batch {batches} is asked for",
                fix=f"leave out --batch, or give --batch {fixed}, or export with a dynamic batch",
            )
        return {}


def read(path: Path) -> Graph:
    """Read a graph's interface, and make sure that the file is whole.

    Raises:
        ConversionError: There is no such file, it is not ONNX, or its external data is missing.
    """
    import onnx
    from onnx.external_data_helper import ExternalDataInfo, uses_external_data

    fix = "export the model again"
    try:
        model = onnx.load(path, load_external_data=False)
    except OSError as error:
        raise ConversionError(
            f"{path} cannot be read: {(error.strerror or str(error)).lower()}",
            fix="check the path of the ONNX file",
        ) from None
    except Exception as error:  # noqa: BLE001 - protobuf's own class is not public
        raise ConversionError(f"{path} is not an ONNX file: {error}", fix=fix) from None
    for tensor in model.graph.initializer:
        if uses_external_data(tensor):
            data = path.parent / ExternalDataInfo(tensor).location
            if not data.is_file():
                raise ConversionError(
                    f"{path} keeps its weights in {data}, which is missing",
                    fix="put that file beside the ONNX file; the two belong together",
                )
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:  # noqa: BLE001 - it has several kinds
        first = str(error).strip().splitlines() or [type(error).__name__]
        raise ConversionError(f"{path} is not valid ONNX: {first[0][:300]}", fix=fix) from None
    held = {tensor.name for tensor in model.graph.initializer}
    graph = Graph(
        tuple(_tensor(v) for v in model.graph.input if v.name not in held),
        tuple(_tensor(v) for v in model.graph.output),
    )
    if not graph.inputs:
        raise ConversionError(f"{path} has no inputs", fix=fix)
    return graph


def line(path: Path, name: str) -> str:
    """A node as ONNX's own text form has it; empty where there is none of that name."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    found = next((node for node in model.graph.node if name and node.name == name), None)
    return "" if found is None else " ".join(onnx.printer.to_text(found).split())


def _tensor(value: Any) -> Tensor:
    import onnx

    kind = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name
    shape = tuple(d.dim_value if d.HasField("dim_value") else DYNAMIC for d in kind.shape.dim)
    return Tensor(value.name, dtype, shape)


def from_json(data: Mapping[str, Any]) -> Graph:
    """The inverse of what :mod:`pipeline.convert_worker` reports."""
    return Graph(
        *(
            tuple(Tensor(t["name"], t["dtype"], tuple(t["shape"])) for t in data[kind])
            for kind in ("inputs", "outputs")
        )
    )
