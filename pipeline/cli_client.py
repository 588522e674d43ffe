"""The command line of the clients: classify, preprocess and build_image_client."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from provision.layout import Layout

Jobs: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # noqa: SLF001 - it has no public name
Number: TypeAlias = Callable[[str], int]

_SCALINGS = ("NONE", "INCEPTION", "VGG", "IMAGENET")
_IN_FLIGHT, _IN_FLIGHT_AT_ONCE = 2, 8


def add_jobs(jobs: Jobs, positive: Number) -> None:
    """Add the clients' jobs.

    Args:
        jobs: The jobs of the command line.
        positive: What reads whole numbers from 1.
    """
    _add_classify(jobs, positive)
    _add_preprocess(jobs, positive)
    _add_build_image_client(jobs)


def _add_classify(jobs: Jobs, positive: Number) -> None:
    job = jobs.add_parser(
        "classify",
        help="have a model name what is in an image, or in each of a folder's",
        description="Send images to a model that is served, and print the classes that it finds. "
        "A folder's files are decoded on all cores while requests are under way; a file that is "
        "no image is named at the end, and does not stop the others.",
    )
    job.add_argument("image", metavar="IMAGE", help="a file, a folder, or - for standard input")
    job.add_argument("-m", "--model-name", required=True, metavar="NAME", help="the model")
    job.add_argument(
        "-x", "--model-version", default="", metavar="N", help="its version (default: the newest)"
    )
    job.add_argument(
        *("-b", "--batch-size"),
        type=positive,
        default=1,
        metavar="N",
        help="images a request; the last is filled with the first again (default: %(default)s)",
    )
    job.add_argument(
        *("-c", "--classes"),
        type=positive,
        default=1,
        metavar="N",
        help="how many classes to print for each image (default: %(default)s)",
    )
    job.add_argument(
        *("-s", "--scaling"),
        choices=_SCALINGS,
        help="how pixels become values (default: IMAGENET, with the parameters of the weights, for "
        "models deployed from here, and NONE for others)",
    )
    job.add_argument(
        *("-u", "--url"),
        metavar="HOST:PORT",
        help="the server (default: ours where it runs, else localhost:8000, for gRPC :8001)",
    )
    job.add_argument(
        *("-i", "--protocol"),
        type=str.lower,
        choices=("http", "grpc"),
        default="http",
        help="what to speak with it (default: %(default)s)",
    )
    job.add_argument(
        *("-a", "--async"),
        dest="at_once",
        action="store_true",
        help=f"have up to {_IN_FLIGHT_AT_ONCE} requests wait for their answers at once, and not "
        f"{_IN_FLIGHT}, for servers that compute several at a time",
    )
    job.add_argument(
        "--in-flight",
        type=positive,
        metavar="N",
        help="how many requests may wait at once, whatever -a says",
    )
    job.add_argument("--json", action="store_true", help="print an object a line for each file")
    job.add_argument(
        "--shared-memory",
        choices=("none", "system"),
        default="none",
        help="hand inputs over in the shared memory of this host (default: %(default)s)",
    )
    job.add_argument(
        "--fast-decode",
        action="store_true",
        help="decode JPEGs at a half, a quarter or an eighth of their size, where that is enough; "
        "pixels differ slightly",
    )
    job.add_argument(
        "-v", "--verbose", action="store_true", help="say on standard error what is sent"
    )
    job.set_defaults(job=_classify)


def _add_preprocess(jobs: Jobs, positive: Number) -> None:
    job = jobs.add_parser(
        "preprocess",
        help="write an image as a model's input, for the C++ client",
        description="Turn an image into the input of a model, as `classify` does, and write it as "
        "fp32, NCHW, little-endian, which is what the C++ client sends.",
    )
    job.add_argument("image", metavar="IMAGE", help="an image file, or - for standard input")
    job.add_argument("output", type=Path, metavar="FILE.dat", help="the file to write")
    which = job.add_mutually_exclusive_group()
    which.add_argument(
        *("-m", "--model-name"),
        metavar="NAME",
        help="a model deployed from here, whose weights say the parameters and the size (default: "
        "a shorter side of 256, the centre of 224)",
    )
    which.add_argument(
        "--side", type=positive, metavar="PIXELS", help="of the input (default: 224)"
    )
    job.add_argument(
        *("-s", "--scaling"),
        choices=_SCALINGS,
        default="IMAGENET",
        help="how pixels become values (default: %(default)s)",
    )
    job.set_defaults(job=_preprocess)


def _add_build_image_client(jobs: Jobs) -> None:
    job = jobs.add_parser(
        "build_image_client",
        help="compile the C++ client into bin/",
        description="Compile pipeline/image_client.cpp against the client library of "
        "`build_client` into bin/image_client under the root, and try it.",
    )
    job.set_defaults(job=_build_image_client)


def _build_image_client(layout: Layout, _: argparse.Namespace) -> int:
    from pipeline.build_image_client import build_image_client

    build_image_client(layout)
    return 0


def _preprocess(layout: Layout, options: argparse.Namespace) -> int:
    from pipeline.dat import DatRequest, write_dat

    request = DatRequest(
        options.image, options.output, options.model_name, options.scaling, options.side
    )
    write_dat(layout, request)
    return 0


def _classify(layout: Layout, options: argparse.Namespace) -> int:
    from pipeline.classify import ClassifyRequest, classify

    request = ClassifyRequest(
        image=options.image,
        model=options.model_name,
        version=options.model_version,
        batch=options.batch_size,
        classes=options.classes,
        scaling=options.scaling,
        url=options.url,
        protocol=options.protocol,
        in_flight=options.in_flight or (_IN_FLIGHT_AT_ONCE if options.at_once else _IN_FLIGHT),
        json=options.json,
        shared_memory=options.shared_memory == "system",
        fast=options.fast_decode,
        verbose=options.verbose,
    )
    classify(layout, request)
    return 0
