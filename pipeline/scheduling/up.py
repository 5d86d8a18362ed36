"""The command `millrace up`: a Prefect server, its workers and the MLflow UI on this machine, with one command.

    millrace up
      Prefect  http://127.0.0.1:4200      flows, deployments, logs, artifacts
      MLflow   http://127.0.0.1:5000      runs, curves, models
      workers  cpu
    Ctrl-C stops all of them.

What it starts are the programs of Prefect and MLflow, each with a guard that ends it with us (pipeline/programs.py).
One that ends by itself is started again: the server's database is on disk, workers and flows wait for it. Everything
is kept in .dvc/tmp/millrace/up. How each is started is the work of pipeline/scheduling/services.py.
"""

from __future__ import annotations

import signal
import sys
import threading

import click

from pipeline.programs import ending_signals
from pipeline.scheduling.addresses import folder
from stages.errors import BadInput

FAILED = 1
RUNNING = "`millrace up` runs here already; addresses.json there has its addresses, Ctrl-C where it was started ends it"


@click.command()
@click.option("--port", default=4200, show_default=True, type=click.IntRange(1, 65535), help="Port of Prefect here.")
@click.option(
    "--mlflow-port",
    default=5000,
    show_default=True,
    type=click.IntRange(0, 65535),
    help="Port of the MLflow UI; 0 for none.",
)
@click.option(
    "--gpus",
    type=click.IntRange(min=0),
    metavar="N",
    help="Slots of the limit `gpu`, and a worker for them. [default: the GPUs here]",
)
def up(port: int, mlflow_port: int, gpus: int | None) -> None:
    """Starts a Prefect server, its workers and the MLflow UI on this machine.

    The server gets the work pools `cpu` and `gpu`, the deployments of prefect.yaml, and the concurrency limit `gpu`
    with a slot for each GPU; a worker for `cpu` runs here, and one for `gpu` where there are GPUs. `millrace run`
    in this clone reports to this server while it is there. Ctrl-C stops all of them; a stage at work is given the
    time to write its checkpoint, and a second Ctrl-C does not wait for it.

    \b
      millrace up                                     Prefect on port 4200, MLflow on 5000
      millrace up --port 4201 --mlflow-port 5001      where these are taken
      millrace up --gpus 1                            a worker for `gpu` on a machine without one, to try it
    then, in another terminal or in the browser:
      export PREFECT_API_URL=http://127.0.0.1:4200/api
      prefect deployment run pretrain/cpu
      prefect deployment run pretrain/cpu -p overrides='{"model.post_norm": true}'
    """
    from pipeline.scheduling.services import Ended, Services
    from pipeline.smoke import alone_in
    from stages.devices import visible_devices
    from stages.root import find_root

    root = find_root()
    if port == mlflow_port:
        raise BadInput(f"--port and --mlflow-port are both {port}; give each its own")
    slots = len(visible_devices()) if gpus is None else gpus
    asked = asked_to_end()
    try:
        with alone_in(folder(root), RUNNING), Services(root, port, mlflow_port, slots, asked.is_set) as services:
            click.echo("millrace: starting; the first time takes half a minute")
            services.start()
            click.echo(services.told())
            services.watch(click.echo)
    except Ended as error:
        if not asked.is_set():
            click.echo(f"millrace: {error}", err=True)
            sys.exit(FAILED)
    click.echo("millrace: stopped")


def asked_to_end() -> threading.Event:
    """Set by the first signal that asks for the end. A second one ends us at once, and the guards end the rest."""
    asked = threading.Event()

    def ask(number: int, frame: object) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    for number in ending_signals():
        signal.signal(number, ask)
    return asked
