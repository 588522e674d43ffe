"""The command line of the pipeline: ``python -m pipeline JOB``.

Only the standard library is imported here, and what a job needs when it is called, so that
``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline import cli_client
from pipeline.cli_plan import Jobs, add_convert, add_plan_options, plan_options
from pipeline.plan_options import ENGINES
from provision.errors import SlipwayError, all_errors
from provision.failures import end_in_order, run
from provision.layout import Layout, log_folder

_DESCRIPTION = """\
Take a torchvision classifier to a verified model on NVIDIA Triton, and prove that what is served
is right. Everything lives under one folder, SLIPWAY_ROOT (default: ~/slipway).
"""
_EXAMPLES = """\
examples:
  python -m pipeline deploy resnet50
  python -m pipeline deploy squeezenet1_1 --weights squeezenet.pth --max-batch-size 4
  python -m pipeline serve --detach
  python -m pipeline smoke --model resnet50
  python -m pipeline classify -m resnet50 -c 5 photo.jpg
  python -m pipeline stop
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, do the job, return its exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    end_in_order()
    if arguments[:2] == ["benchmark", "build"]:  # which has options of its own
        from pipeline import benchmark_build

        return run(lambda: benchmark_build.main(arguments[2:]), log_folder())
    if arguments[:1] == ["verify_gpu"]:
        from pipeline import verify_gpu

        return run(lambda: verify_gpu.main(arguments[1:]), log_folder())
    if arguments[:2] == ["benchmark", "clients"]:
        from pipeline import benchmark_clients

        return run(lambda: benchmark_clients.main(arguments[2:]), log_folder())
    options = parser().parse_args(arguments)
    return run(lambda: int(options.job(Layout.from_environment(), options) or 0), log_folder())


def _exit_codes() -> str:
    """Every exit code with its meaning, which is the first line of its error's description."""
    rows = [f"  {0:3}  done"]
    for error in sorted(all_errors(), key=lambda e: e.exit_code):
        if error is not SlipwayError:
            summary = (error.__doc__ or "").partition("\n")[0].rstrip(".")
            rows.append(f"  {error.exit_code:3}  {summary[0].lower()}{summary[1:]}")
    return "\nexit codes:\n" + "\n".join(rows)


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    whole = argparse.ArgumentParser(
        prog="python -m pipeline",
        description=_DESCRIPTION,
        epilog=_EXAMPLES + _exit_codes(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    jobs = whole.add_subparsers(title="jobs", metavar="JOB", required=True)
    _add_deploy(jobs)
    add_convert(jobs)
    _add_serve(jobs)
    _add_status(jobs)
    _add_stop(jobs)
    _add_smoke(jobs)
    _add_benchmark(jobs)
    jobs.add_parser("verify_gpu", help="try all of TensorRT on this host, with a report to send")
    cli_client.add_jobs(jobs, _positive)
    return whole


def _add_deploy(jobs: Jobs) -> None:
    job = jobs.add_parser(
        "deploy",
        help="export, verify and install a model as the next version in models/",
        description="Export a torchvision classifier to ONNX, compare ONNX Runtime with PyTorch, "
        "and install it with its configuration as the next version of the live model repository. "
        "Where nothing has changed, nothing is done.",
    )
    job.add_argument("model", metavar="MODEL", help="a torchvision classifier, such as resnet50")
    job.add_argument(
        "--weights",
        default="IMAGENET1K_V1",
        metavar="WHICH",
        help="a torchvision weights name (default: %(default)s), a state-dict file, or `random` "
        "or `random:SEED`; `auto` is the default where it can be had, random otherwise",
    )
    job.add_argument("--name", default="", help="the name to serve it under (default: MODEL)")
    _add_batch_size(job)
    job.add_argument(
        "--instances", type=_positive, metavar="N", help="copies that serve at once (default: 1)"
    )
    job.add_argument(
        "--threads", type=_positive, metavar="N", help="threads of each copy (default: all cores)"
    )
    job.add_argument(
        "--engine",
        choices=ENGINES,
        default="auto",
        help="what runs it; auto takes TensorRT where a GPU, the library and a server with that "
        "backend are there, and says why not (default: %(default)s)",
    )
    job.add_argument(
        "--plan", type=Path, metavar="PLAN", help="a TensorRT plan of `convert`, ready to be served"
    )
    job.add_argument(
        "--cuda-graphs", action="store_true", help="launch TensorRT plans as CUDA graphs"
    )
    job.add_argument("--force", action="store_true", help="deploy even where nothing has changed")
    job.add_argument(
        "--no-wait", action="store_true", help="fail if another deploy of MODEL is at work"
    )
    add_plan_options(job)
    job.set_defaults(job=_deploy)


def _add_batch_size(job: argparse.ArgumentParser) -> None:
    job.add_argument(
        "--max-batch-size",
        type=_not_negative,
        metavar="N",
        help="the largest batch of a request, with dynamic batching (default: the source's, 8); "
        "0 gives the recipe's form, one image a request without a batch dimension",
    )


def _add_serve(jobs: Jobs) -> None:
    job = jobs.add_parser(
        "serve",
        help="start the server on models/, until Ctrl-C",
        description="Start Triton on the live model repository. It listens on loopback, and runs "
        "until Ctrl-C, or in the background with --detach.",
    )
    job.add_argument("--detach", action="store_true", help="return when it is ready; see `stop`")
    job.add_argument(
        "--host", default="127.0.0.1", help="the address to listen on (default: %(default)s)"
    )
    for name, port in (("http", 8000), ("grpc", 8001), ("metrics", 8002)):
        job.add_argument(
            f"--{name}-port",
            type=_not_negative,
            default=port,
            metavar="PORT",
            help=f"the {name} port, 0 for a free one (default: %(default)s)",
        )
    job.add_argument(
        "--timeout",
        type=float,
        default=180.0,
        metavar="SECONDS",
        help="how long loading may take (default: %(default).0f)",
    )
    _add_server(job)
    job.set_defaults(job=_serve)


def _add_server(job: argparse.ArgumentParser) -> None:
    job.add_argument(
        "--server",
        choices=("embedded", "built"),
        help="which Triton: the embedded one (the default), or that of `nox -s build_server`",
    )


def _add_status(jobs: Jobs) -> None:
    job = jobs.add_parser(
        "status",
        help="what is deployed, and whether the server runs",
        description="Show what is deployed and what the server of `serve` answers. "
        "Exits with 3 where none runs.",
    )
    job.set_defaults(job=_status)


def _add_stop(jobs: Jobs) -> None:
    job = jobs.add_parser(
        "stop",
        help="end the server, and clear up after one that crashed",
        description="End the server of `serve`, and remove the processes and shared memory that "
        "crashed servers of ours left behind.",
    )
    job.set_defaults(job=_stop)


def _add_smoke(jobs: Jobs) -> None:
    job = jobs.add_parser(
        "smoke",
        help="prove that what is served is right, with a report",
        description="Ask the server about a model and judge every answer: readiness, metadata, "
        "photos, logits against the reference of the deploy, batches, concurrency, statistics and "
        "malformed requests. Starts a server where none is named and none runs, and deploys the "
        "model where it is not deployed.",
    )
    job.add_argument("--url", metavar="HOST:PORT", help="the server to ask (default: ours)")
    job.add_argument("--model", default="resnet50", metavar="NAME", help="default: %(default)s")
    job.add_argument(
        "--image",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="a photo of yours to classify too; may be given several times",
    )
    job.add_argument(
        "--expect",
        action="append",
        default=[],
        metavar="LABEL",
        help="the label that the --image before must get; may be given once an image",
    )
    job.add_argument(
        "--report",
        type=Path,
        default=Path("report"),
        metavar="FOLDER",
        help="where smoke.json and smoke.html go (default: %(default)s)",
    )
    _add_server(job)
    job.set_defaults(job=_smoke)


def _add_benchmark(jobs: Jobs) -> None:
    job = jobs.add_parser(
        "benchmark",
        help="measure the speed of what is served, as ratios in one run",
        description="Measure served throughput against in-process ONNX Runtime, and what Triton "
        "itself adds to a request. `benchmark build` measures a build of the server instead, "
        "`benchmark clients` the Python client.",
    )
    job.add_argument("--quick", action="store_true", help="a few seconds a figure")
    job.add_argument("--model", default="resnet50", metavar="NAME", help="default: %(default)s")
    job.set_defaults(job=_benchmark)


def _deploy(layout: Layout, options: argparse.Namespace) -> int:
    from pipeline.deploy import DeployRequest, deploy
    from pipeline.weights import WeightsSpec

    request = DeployRequest(
        architecture=options.model,
        weights=WeightsSpec.parse(options.weights),
        name=options.name,
        max_batch_size=options.max_batch_size,
        instances=options.instances,
        threads=options.threads,
        engine=options.engine,
        plan=plan_options(options),
        ready=options.plan.expanduser().absolute() if options.plan else None,
        cuda_graphs=options.cuda_graphs,
        force=options.force,
        wait=not options.no_wait,
    )
    deployed = deploy(layout, request)
    if deployed.changed:
        from pipeline.serve import load_new_version

        load_new_version(layout, deployed.manifest)
    return 0


def _serve(layout: Layout, options: argparse.Namespace) -> int:
    from pipeline.serve import serve
    from pipeline.server import ServeOptions

    where = ServeOptions(
        host=options.host,
        http=options.http_port,
        grpc=options.grpc_port,
        metrics=options.metrics_port,
        timeout=options.timeout,
    )
    serve(layout, where, detach=options.detach, which=options.server)
    return 0


def _status(layout: Layout, _: argparse.Namespace) -> int:
    from pipeline.serve import status

    status(layout)
    return 0


def _stop(layout: Layout, _: argparse.Namespace) -> int:
    from pipeline.serve import stop_all

    stop_all(layout)
    return 0


def _smoke(layout: Layout, options: argparse.Namespace) -> int:
    from pipeline.smoke import SmokeRequest, smoke

    request = SmokeRequest(
        model=options.model,
        url=options.url,
        images=tuple(options.image),
        expected=tuple(options.expect),
        report=options.report,
        command=" ".join(["nox -s smoke --", *sys.argv[2:]]).removesuffix(" --"),
        which=options.server,
    )
    smoke(layout, request)
    return 0


def _benchmark(layout: Layout, options: argparse.Namespace) -> int:
    from pipeline.benchmark import benchmark

    benchmark(layout, model=options.model, quick=options.quick)
    return 0


def _positive(text: str) -> int:
    number = _not_negative(text)
    if number == 0:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


def _not_negative(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number") from None
    if number < 0:
        raise argparse.ArgumentTypeError("must not be negative")
    return number
