"""The measurements of :mod:`pipeline.benchmark`, one method each."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as triton

from pipeline import delegate
from pipeline.benchmark_result import CONCURRENCY, Figure, Turns
from pipeline.load import PASSES, LoadGenerator
from pipeline.manifest import Manifest
from pipeline.repository import add_files
from provision import environments, processes
from provision.console import step
from provision.errors import SmokeError
from provision.layout import REPOSITORY, Layout

# No model of a user's can be called that: Slipway's names begin with a letter or digit.
_NULL = "_null"
_NULL_SECONDS = 0.5
_ANSWERS_OF_EACH_CLIENT = 3


@dataclass(frozen=True)
class Effort:
    """How much is measured.

    Attributes:
        rounds: How often the model is measured in process and served, in turns.
        seconds: How long each time.
        null_rounds: How often the null model is measured.
        smokes: How often the smoke test is run.
        helps: How often the help is asked for.
    """

    rounds: int
    seconds: float
    null_rounds: int
    smokes: int
    helps: int


QUICK = Effort(rounds=5, seconds=2.0, null_rounds=2, smokes=1, helps=5)
FULL = Effort(rounds=11, seconds=5.0, null_rounds=5, smokes=3, helps=10)


@dataclass(frozen=True)
class Bench:
    """What the measurements share.

    Attributes:
        layout: The host.
        manifest: Of the deployed model.
        effort: How much is measured.
        generator: What puts a server under load.
        folder: For work in progress.
        log: Where the output of all programs goes.
    """

    layout: Layout
    manifest: Manifest
    effort: Effort
    generator: LoadGenerator
    folder: Path
    log: Path

    def throughput(self, url: str) -> Turns:
        """The model in process and served, in turns."""
        model, effort = self.manifest.model, self.effort
        environment = environments.ensure(self.layout, "serving")
        version_folder = self.layout.models / model / str(self.manifest.version)
        request = {
            "onnx": str(version_folder / "model.onnx"),
            "side": self.manifest.side,
            "seconds": effort.seconds,
        }
        alone: list[float] = []
        served: list[float] = []
        version = ""
        with step(f"Throughput of {model}, in process and served in turns") as measuring:
            for turn in range(effort.rounds):
                measuring.progress(f"round {turn + 1} of {effort.rounds}")
                answer = delegate.call(
                    environment,
                    "pipeline.in_process",
                    request,
                    folder=self.folder,
                    log=self.log,
                    progress=measuring.progress,
                )
                version = answer["onnxruntime"]
                alone.append(answer["throughput"])
                load = self.generator.measure(
                    url,
                    model,
                    concurrency=CONCURRENCY,
                    seconds=pass_seconds(alone[-1], effort.seconds),
                )
                served.append(load.throughput)
            turns = Turns(tuple(alone), tuple(served), version)
            measuring.detail = turns.figure().note
        return turns

    def overhead(self, url: str) -> Figure:
        """The latency of a model that computes nothing."""
        with step("Triton's own part, with a model that computes nothing"):
            loads = [
                self.generator.measure(url, _NULL, concurrency=1, seconds=_NULL_SECONDS)
                for _ in range(self.effort.null_rounds)
            ]
        return Figure(
            name="p50 latency of a null model",
            unit="ms",
            target=3.0,
            at_least=False,
            samples=tuple(load.p50_ms for load in loads),
            note="HTTP, one request at a time",
        )

    def smoke(self) -> Figure:
        """The smoke test, with everything deployed and a server of its own."""
        arguments = ("smoke", f"--model={self.manifest.model}", f"--report={self.folder}/report")
        with step("The smoke test"):
            samples = tuple(self._timed(*arguments) for _ in range(self.effort.smokes))
        return Figure(
            name="smoke test, everything deployed",
            unit="s",
            target=20.0,
            at_least=False,
            samples=samples,
            note="with a server of its own, started and stopped",
        )

    def help(self) -> Figure:
        """The help, at best: everything else that delays it is the host's."""
        with step("The answer to --help"):
            samples = tuple(self._timed("--help") for _ in range(self.effort.helps))
        return Figure(
            name="python -m pipeline --help",
            unit="s",
            target=0.3,
            at_least=False,
            samples=samples,
            choose=min,
            note="the best",
        )

    def _timed(self, *arguments: str) -> float:
        """How many seconds a job of ours takes, started as users start it."""
        begun = time.perf_counter()
        code = processes.run_logged(
            [sys.executable, "-m", "pipeline", *arguments],
            log=self.log,
            env={**os.environ, "SLIPWAY_ROOT": str(self.layout.root)},
            cwd=REPOSITORY,
        )
        passed = time.perf_counter() - begun
        if code != 0:
            raise SmokeError(
                f"`python -m pipeline {' '.join(arguments)}` failed (exit {code}):\n"
                f"{processes.last_lines(self.log)}",
                fix="put right what it names, then measure again",
                log=self.log,
            )
        return passed


def pass_seconds(rate: float, seconds: float) -> float:
    """How long each pass takes, so that those that count take about `seconds` together.

    A slow model gets more time, so that a pass holds some answers of every client.
    """
    return max(seconds / (PASSES - 1), _ANSWERS_OF_EACH_CLIENT * CONCURRENCY / rate)


def add_null_model(repository: Path) -> str:
    """Put the null model into a model repository; its name there."""
    config = triton.ModelConfig(name=_NULL, backend="python")
    config.input.add(name="input", data_type=triton.TYPE_FP32, dims=[3, 224, 224])
    config.output.add(name="output", data_type=triton.TYPE_FP32, dims=[1000])
    config.instance_group.add(kind=triton.ModelInstanceGroup.KIND_CPU, count=1)
    add_files(
        repository / _NULL,
        {
            "config.pbtxt": text_format.MessageToString(config),
            "1/model.py": Path(__file__).with_name("null_model.py"),
        },
    )
    return _NULL
