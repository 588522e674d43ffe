"""Deploy a classifier: export, verify, configure, install (recipe step 4)."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline import classifiers, delegate, deploy_plan, photos
from pipeline.choose_engine import Choice, Facts, choose, read_facts
from pipeline.manifest import Manifest, damaged
from pipeline.plan_options import Asked, PlanOptions
from pipeline.repository import Repository, check_name
from pipeline.weights import WeightsSpec
from provision import environments
from provision.console import say, step, warn
from provision.cores import available_cores
from provision.errors import UsageError
from provision.files import fresh_folder, sha256
from provision.layout import REPOSITORY, Layout

SOURCES = REPOSITORY / "model_repository"
_TEMPLATE = "resnet50"
# What a deployed version depends on besides its options: the code that makes it, and its locks.
_MAKERS = (
    "builder.py",
    "calibration.py",
    "config.py",
    "convert.py",
    "convert_worker.py",
    "engines.py",
    "export.py",
    "graph.py",
    "images.py",
    "install.py",
    "onnxruntime_model.py",
    "photos.toml",
    "precision.py",
    "prepare.py",
    "proof.py",
    "preprocess.py",
    "tensorrt_worker.py",
    "tolerances.toml",
    "verify.py",
    "weights.py",
)


@dataclass(frozen=True)
class DeployRequest:
    """What to deploy.

    Attributes:
        architecture: A torchvision classifier.
        weights: Which weights.
        name: The model's name in the repository; by default the architecture's.
        max_batch_size: The largest batch of a request, 0 for the recipe's form without a batch
            dimension; None for what the source says.
        instances: How many copies serve; None for what suits the cores.
        threads: How many threads each; None for what suits the cores.
        engine: What is to run it.
        plan: What a TensorRT plan is built with.
        ready: A plan that was built already, instead.
        cuda_graphs: Whether plans are launched as CUDA graphs.
        force: Deploy a new version even where nothing has changed.
        wait: Wait for another deploy of the same model, instead of failing.
    """

    architecture: str
    weights: WeightsSpec
    name: str = ""
    max_batch_size: int | None = None
    instances: int | None = None
    threads: int | None = None
    engine: Asked = "auto"
    plan: PlanOptions = field(default_factory=PlanOptions)
    ready: Path | None = None
    cuda_graphs: bool = False
    force: bool = False
    wait: bool = True

    @property
    def model(self) -> str:
        """The model's name in the repository."""
        return self.name or self.architecture

    @property
    def source(self) -> Path:
        """The folder of its readable sources: by its name, its architecture, or ResNet-50's."""
        folders = (SOURCES / name for name in (self.model, self.architecture, _TEMPLATE))
        return next(folder for folder in folders if (folder / "config.pbtxt").is_file())

    def fingerprint(self, choice: Choice, facts: Facts) -> str:
        """A hash over everything that decides what is deployed.

        Args:
            choice: The engine.
            facts: What it was chosen by.
        """
        here = Path(__file__).parent
        files = [here / name for name in _MAKERS]
        files += [file for file in sorted(self.source.iterdir()) if file.is_file()]
        files += [environments.lock_file("export")]
        decided = {
            "architecture": self.architecture,
            "weights": self.weights.to_json(),
            "max_batch_size": self.max_batch_size,
            "instances": self.instances,
            "threads": self.threads,
            "cores": available_cores(),
            "files": [sha256(file) for file in files],
            "engine": choice.engine,
        }
        if choice.engine == "tensorrt":
            decided |= {
                "plan": repr(self.plan),
                "ready": sha256(self.ready) if self.ready else "",
                "cuda_graphs": self.cuda_graphs,
                "tensorrt": facts.wanted,
                "devices": repr(facts.devices),
                "driver": facts.driver,
            }
        return hashlib.sha256(json.dumps(decided, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Deployed:
    """What came of a deploy.

    Attributes:
        manifest: Of the version that is live now.
        changed: Whether it is a new one.
    """

    manifest: Manifest
    changed: bool


def deploy(layout: Layout, request: DeployRequest) -> Deployed:
    """Make a model's next version live, unless the live one is what was asked for already.

    Raises:
        UsageError: There is no such classifier, the name cannot be a model's, or options do not
            go together.
        HostError: TensorRT was asked for and cannot serve here.
        PlanError: The plan does not fit the server or the GPU.
        SlipwayError: Whatever fails; nothing that was live before is touched then.
    """
    classifiers.check(request.architecture)
    check_name(request.model)
    facts = read_facts(layout)
    if request.ready:
        deploy_plan.check_ready(request.ready, facts)
    choice = choose("tensorrt" if request.ready else request.engine, facts)
    _check_options(request, choice)
    repository = Repository(layout)
    waiting = _say_waiting if request.wait else None
    with repository.exclusive(request.model, waiting):
        fingerprint = request.fingerprint(choice, facts)
        live = None if request.force else _unchanged(repository, request.model, fingerprint)
        if live:
            say(
                f"{live.model} version {live.version} is deployed already and nothing has changed "
                f"since {live.created}; `--force` deploys it again"
            )
            return Deployed(live, changed=False)
        manifest = _deploy(layout, repository, request, fingerprint, choice, facts)
        return Deployed(manifest, changed=True)


def _check_options(request: DeployRequest, choice: Choice) -> None:
    """Options that the engine does not have are not passed over in silence."""
    on_cpu = choice.engine == "onnxruntime"
    if on_cpu and (request.plan != PlanOptions() or request.cuda_graphs):
        raise UsageError(
            "options of TensorRT plans are given, and the engine is onnxruntime",
            cause=f"It is {choice.reason}",
            fix="leave out --precision and the other options of plans; `--engine tensorrt` says "
            "what TensorRT needs",
        )
    if not on_cpu and request.threads:
        raise UsageError(
            "--threads is given, and the engine is tensorrt",
            fix="leave it out, or give --engine onnxruntime",
        )


def _unchanged(repository: Repository, model: str, fingerprint: str) -> Manifest | None:
    """The live version, if it is whole and was made from the same things."""
    live = repository.latest(model)
    if live is None or live.fingerprint != fingerprint:
        return None
    broken = damaged(live, repository.path / model)
    if broken:
        warn(f"{model} version {live.version} is damaged ({', '.join(broken)}); deploying again")
        return None
    return live


def _deploy(
    layout: Layout,
    repository: Repository,
    request: DeployRequest,
    fingerprint: str,
    choice: Choice,
    facts: Facts,
) -> Manifest:
    # Not needed to find that nothing has changed, which has to be quick.
    from pipeline.config import read_config
    from pipeline.engines import Engine, OnnxRuntimeEngine
    from pipeline.install import Prepared, install_version

    model = request.model
    max_batch_size = request.max_batch_size
    if max_batch_size is None:
        max_batch_size = int(read_config(request.source / "config.pbtxt").max_batch_size)
    plan = request.plan
    if choice.engine == "tensorrt":
        max_batch_size, plan = deploy_plan.settle_batches(
            plan, max_batch_size, given=request.max_batch_size
        )
    engine: Engine
    if choice.engine == "tensorrt":
        say(f"engine tensorrt: {choice.reason}")
    else:
        engine = on_cpu = OnnxRuntimeEngine.choose(
            instances=request.instances, threads=request.threads, reason=choice.reason
        )
        say(f"engine {engine.name}: {engine.reason}")
    work = layout.transit / "deploy" / model
    fresh_folder(work)
    onnx, reference = work / "model.onnx", work / "reference.npz"
    samples = {photo.name: photo.path for photo in photos.sample_photos()}
    order = {
        "model": request.architecture,
        "weights": {"kind": request.weights.kind, "value": request.weights.value},
        "photos": {name: str(path) for name, path in samples.items()},
        "max_batch_size": max_batch_size,
        "onnx": str(onnx),
        "reference": str(reference),
    }
    try:
        prepared = Prepared(**_prepare(layout, model, order, work))
        if prepared.weights["note"]:
            warn(prepared.weights["note"])
        if choice.engine == "tensorrt":
            wanted = deploy_plan.PlanOrder(
                model=model,
                options=plan,
                ready=request.ready,
                instances=request.instances or 1,
                cuda_graphs=request.cuda_graphs,
                reason=choice.reason,
            )
            engine, files = deploy_plan.make(
                layout, wanted, onnx, prepared.preprocessing, facts, work
            )
            prepared.verification.update(engine.record.verification)
        else:
            files = on_cpu.files(onnx)
        with step(f"Install {model} into {repository.path}") as installing:
            manifest = install_version(
                repository,
                model,
                prepared,
                source=request.source,
                engine=engine,
                max_batch_size=max_batch_size,
                files={**files, "reference.npz": reference},
                architecture=request.architecture,
                fingerprint=fingerprint,
                photos={name: sha256(path) for name, path in samples.items()},
            )
            installing.detail = f"version {manifest.version}, {len(manifest.files)} files"
        return manifest
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _prepare(layout: Layout, model: str, order: dict[str, Any], work: Path) -> dict[str, Any]:
    """Have the model exported and verified where torch is."""
    environment = environments.ensure(layout, "export")
    log = layout.logs / f"deploy-{model}-{time.strftime('%Y%m%d-%H%M%S')}.log"
    with step(f"Export {order['model']} and compare with PyTorch") as exporting:
        made = delegate.call(
            environment,
            "pipeline.prepare",
            order,
            folder=work,
            log=log,
            progress=exporting.progress,
        )
        verified = made["verification"]
        worst = max(case["max_abs"] for case in verified["cases"])
        exporting.detail = (
            f"weights {made['weights']['spec']}, {Path(order['onnx']).stat().st_size / 2**20:.1f} "
            f"MiB, largest error {worst:.1e} (allowed {verified['atol']:g} + "
            f"{verified['rtol']:g} * |logit|), top-5 equal"
        )
    return made


def _say_waiting(other: str) -> None:
    say(f"waiting for {other} to end")
