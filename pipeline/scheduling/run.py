"""The flow as a command of a terminal runs it: Prefect is imported here and not before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pipeline.scheduling.addresses import Addresses
from stages.root import find_root

FAILED = 1


def run_flow(root: Path, **parameters: Any) -> int:
    """Runs the flow with these parameters and prints how it ended; the exit code."""
    from pipeline.scheduling import flow
    from pipeline.scheduling.server import NoServer

    try:
        code, message = flow.run(root, Addresses.read(find_root()).prefect, **parameters)
    except NoServer as error:
        code, message = FAILED, str(error)
    click.echo(f"millrace: {message}", err=code != 0)
    return code
