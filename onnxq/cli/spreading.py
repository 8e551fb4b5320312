"""The options that spread a calibration and searches over processes and machines."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from onnxq.cli.options import RANGES
from onnxq.errors import OptionError

__all__ = ["Dask", "Workers", "executor_of"]

Workers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        min=1,
        help="Run the samples, and measure node by node, in so many processes; the result is the "
        "same.",
        rich_help_panel=RANGES,
    ),
]
Dask = Annotated[
    str | None,
    typer.Option(
        "--dask",
        metavar="ADDRESS",
        help="Do so on the cluster of this scheduler, such as tcp://host:8786.",
        rich_help_panel=RANGES,
    ),
]


@contextmanager
def executor_of(dask: str | None) -> Iterator[Executor | None]:
    """An executor on the cluster, as long as it is needed; None without an address.

    Raises OptionError if dask is not installed or the scheduler does not answer.
    """
    if dask is None:
        yield None
        return
    try:
        import distributed
    except ImportError as error:
        raise OptionError(
            f"--dask needs the package distributed ({error}): pip install 'onnxq[dask]'"
        ) from error
    try:
        client: Any = distributed.Client(dask, timeout="10s")  # type: ignore[no-untyped-call]  # it has no types
    except (OSError, ValueError) as error:
        raise OptionError(f"--dask {dask}: no scheduler answers there ({error})") from error
    with client:
        yield client.get_executor()
