"""The command `millrace import`: a folder of transformers becomes a checkpoint to continue from."""

from __future__ import annotations

from pathlib import Path

import click

from model.config import ModelConfig
from stages.errors import BadInput


@click.command(name="import")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Where to write. [default: imported/NAME]")
def import_(folder: Path, out: Path | None) -> None:
    """Turns a folder of transformers into a checkpoint to continue from.

    Reads every architecture in docs/export.md, in one file of weights or several, and Millrace's own exports. Prints
    the params with which training goes on from it. Carried: the weights (in fp32), the architecture, tokenizer.json.
    Not carried: optimizer states, the step, generation settings, the chat template.

    \b
      millrace import ~/models/SmolLM2-135M --out imported/smollm2
    """
    from stages.imported import import_folder

    target = out or Path("imported") / folder.resolve().name
    for place, why in (("data", "which the stages write anew"), ("inputs", "where download looks for documents")):
        if target.resolve().is_relative_to(Path(place).resolve()):
            raise BadInput(f"{target} lies in {place}/, {why}; name another folder with --out")
    made = import_folder(folder, target)
    click.echo(
        f"{target}: {made.n_parameters:,} parameters, vocabulary {made.vocab_size:,}, reads up to "
        f"{made.context_length:,} tokens; weights in fp32, no optimizer state, step 0"
    )
    click.echo("to continue from it, set in params.yaml:")
    for line in lines_for_params(made.config):
        click.echo(f"  {line}")
    click.echo(f"  model.init_sha256: {made.weights_sha256}\n  execution.init_from: {target}")
    if made.tokenizer_sha256:
        click.echo(f"  tokenizer.file: {target / 'tokenizer.json'}\n  tokenizer.file_sha256: {made.tokenizer_sha256}")
    click.echo(f"  pack.context_length: {made.context_length} or less")


def lines_for_params(config: ModelConfig) -> list[str]:
    """The params of the model that are not as in params.yaml, or as by default where there is none."""
    from stages.first_weights import differences
    from stages.params import ParamsFile

    params = Path("params.yaml")
    ours = ParamsFile(params).section("model", ModelConfig) if params.is_file() else ModelConfig()
    return [line.replace("=", ": ", 1) for line in differences(ours, config)]
