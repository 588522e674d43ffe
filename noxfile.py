"""Slipway's jobs, one session each; `nox -l` is the table of contents.

Everything after `--` goes to the job: `nox -s serve -- --help` lists what it takes.
"""

from __future__ import annotations

import nox

nox.needs_version = ">=2024.4.15"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.reuse_venv = "yes"

LOCKS = "provision/locks"
GROUPS = (
    *("bootstrap", "pipeline", "export", "serving", "build", "build_wheels"),
    *("convert", "tensorrt", "tensorrt_8", "tensorrt_rtx"),
    *("client", "cuda", "load", "tests", "lint", "typecheck"),
)


@nox.session(default=False)
def smoke(session: nox.Session) -> None:
    """Prove that what is served is right; deploys and starts what is missing. Report in report/."""
    pipeline(session, "smoke")


@nox.session(default=False)
def deploy_resnet50(session: nox.Session) -> None:
    """Export, verify and install ResNet-50 into models/ (recipe step 4)."""
    pipeline(session, "deploy", "resnet50")


@nox.session(default=False)
def deploy(session: nox.Session) -> None:
    """The same for any torchvision classifier: `-- MODEL [--weights …]`."""
    pipeline(session, "deploy")


@nox.session(default=False)
def convert(session: nox.Session) -> None:
    """Turn an ONNX file into a verified TensorRT plan: `-- MODEL.onnx PLAN [--precision …]`."""
    pipeline(session, "convert")


@nox.session(default=False)
def verify_gpu(session: nox.Session) -> None:
    """Try all that is done with TensorRT on this GPU host, with a report to send."""
    pipeline(session, "verify_gpu")


@nox.session(default=False)
def serve(session: nox.Session) -> None:
    """Start Triton on models/, until Ctrl-C; `-- --detach` returns when it is ready."""
    pipeline(session, "serve")


@nox.session(default=False)
def status(session: nox.Session) -> None:
    """Show what is deployed and what the server says of it."""
    pipeline(session, "status")


@nox.session(default=False)
def stop(session: nox.Session) -> None:
    """End the server, and clear up after one that crashed."""
    pipeline(session, "stop")


@nox.session(default=False)
def benchmark(session: nox.Session) -> None:
    """Measure what is served, as ratios in one run; `-- build`, `-- clients` for those."""
    pipeline(session, "benchmark")


@nox.session(default=False)
def doctor(session: nox.Session) -> None:
    """Say what this host can build and what it lacks; `-- --install` adds the packages."""
    provision(session, "doctor")


@nox.session(default=False)
def install_cmake(session: nox.Session) -> None:
    """Install the CMake of a release into vendor/ (recipe step 1): `-- --release 22.01`."""
    provision(session, "install_cmake")


@nox.session(default=False)
def install_cuda(session: nox.Session) -> None:
    """Install CUDA's compiler and libraries into vendor/, without root, for hosts without them."""
    provision(session, "install_cuda")


@nox.session(default=False)
def install_tensorrt(session: nox.Session) -> None:
    """Put TensorRT's headers beside the libraries of its wheels, in vendor/, for a build."""
    provision(session, "install_tensorrt")


@nox.session(default=False)
def fetch_sources(session: nox.Session) -> None:
    """Bring all that a build downloads into transit/mirror, pinned: `-- --mirror DIR_OR_URL`."""
    provision(session, "fetch_sources")


@nox.session(default=False)
def build_server(session: nox.Session) -> None:
    """Build Triton from source into triton/server, without Docker (recipe step 2)."""
    provision(session, "build_server")


@nox.session(default=False)
def build_client(session: nox.Session) -> None:
    """Build the client libraries and the wheel into triton/client (recipe step 3)."""
    provision(session, "build_client")


@nox.session(default=False)
def classify(session: nox.Session) -> None:
    """Classify an image, or a folder of them (recipe step 5): `-- -m resnet50 -c 5 photo.jpg`."""
    pipeline(session, "classify")


@nox.session(default=False)
def preprocess(session: nox.Session) -> None:
    """Write an image as a model's input, for the C++ client: `-- photo.jpg photo.dat`."""
    pipeline(session, "preprocess")


@nox.session(default=False)
def build_image_client(session: nox.Session) -> None:
    """Compile the C++ client into bin/image_client (recipe step 6), after `build_client`."""
    pipeline(session, "build_image_client")


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and formatting."""
    install(session, "lint")
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")


@nox.session
def typecheck(session: nox.Session) -> None:
    """Check types, strictly."""
    install(session, "typecheck")
    session.run("mypy")


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests, on the real server; `-- -m 'not export'` leaves out what needs torch."""
    install(session, "tests")
    # ONNX Runtime's wheels report to their makers since 1.29, unless told not to.
    session.run("pytest", *session.posargs, env={"ORT_DISABLE_TELEMETRY": "1"})


@nox.session(default=False)
def lock(session: nox.Session) -> None:
    """Resolve every dependency group of pyproject.toml again, into provision/locks/."""
    session.install("uv")
    for group in GROUPS:
        session.run(
            *("uv", "pip", "compile", "--quiet", "--universal", "--python-version=3.10"),
            *("--generate-hashes", "--no-header", "--upgrade", f"--group={group}"),
            *("--output-file", f"{LOCKS}/{group}.txt"),
        )


@nox.session(default=False)
def update_releases(session: nox.Session) -> None:
    """Resolve the branches and tags of releases to commits: `-- 26.08`."""
    provision(session, "update_releases")


def install(session: nox.Session, group: str) -> None:
    """Install a dependency group from its lock."""
    session.install("--no-deps", "--require-hashes", "--requirement", f"{LOCKS}/{group}.txt")


def provision(session: nox.Session, job: str) -> None:
    """Run a job of the host."""
    install(session, "pipeline")
    session.run(
        *("python", "-m", "provision", job, *session.posargs),
        env={"PYTHONPATH": None},
        interrupt_timeout=60,
        terminate_timeout=30,
    )


def pipeline(session: nox.Session, *job: str) -> None:
    """Run a job of the pipeline, and leave it the time to end in order on Ctrl-C."""
    install(session, "pipeline")
    session.run(
        *("python", "-m", "pipeline", *job, *session.posargs),
        env={"PYTHONPATH": None},
        interrupt_timeout=60,
        terminate_timeout=30,
    )
