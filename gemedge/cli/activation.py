"""`gemedge activation`: an activation in integers, its certificate, and what the usual tables would do."""

import re
from fractions import Fraction
from pathlib import Path

import click
import numpy as np

from gemedge import files
from gemedge.activation import Activation, Branch
from gemedge.certificate import inputs_to_check
from gemedge.cli.console import note, print_json, print_table
from gemedge.cli.formats import read_params
from gemedge.errors import UsageError
from gemedge.kernel import FixedActivation
from gemedge.methods import SHARED_BYTES, Method, compare
from gemedge.stored import as_bytes, to_json

_RELU = Activation.rational(negative=Branch(), positive=Branch(slope=Fraction(1)))


@click.command("activation")
@click.argument("text", metavar="ACTIVATION")
@click.option("--in", "source", default="Q3.12", show_default=True, help="As Q3.12 or int8(scale=0.1, zero_point=3).")
@click.option("--out", "target", default="Q3.12", show_default=True, help="Output, written likewise.")
@click.option("-o", "output", type=click.Path(path_type=Path), help="Save the kernel, or the sweep's CSV, here.")
@click.option("--plot", type=click.Path(path_type=Path), help="Draw it into this .png, .svg or .pdf file.")
@click.option(
    "--emit-c", "emitted", is_flag=False, flag_value="", metavar="[FILE.h]", help="Write it as one C header, too."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--sweep", is_flag=True, help="Certify a grid of n, epsilon and formats; -o takes the CSV.")
@click.option("--ns", default="1,2,3,4", show_default=True, help="--sweep: the values of n.")
@click.option("--epsilons", default="1e-6,1e-4,1e-3,0.01,0.1,1,10,1000", show_default=True, help="--sweep: of epsilon.")
@click.option("--formats", default="Q0.15,Q3.12,Q7.8", show_default=True, help="--sweep: each as input and as output.")
@click.option("--jobs", type=click.IntRange(1), help="--sweep: processes; by default one for each processor.")
@click.option("--force", is_flag=True, help="Replace files that exist.")
@click.option("-q", "--quiet", is_flag=True, help="No notes and no progress.")
def command(
    text: str,
    source: str,
    target: str,
    output: Path | None,
    plot: Path | None,
    emitted: str | None,
    as_json: bool,
    sweep: bool,
    ns: str,
    epsilons: str,
    formats: str,
    jobs: int | None,
    force: bool,
    quiet: bool,
) -> None:
    """Certify ACTIVATION in integers, for example "egem(n=1, epsilon=0.01)".

    Prints the certificate of the integer kernel over all input codes, and compares it with 513-entry tables
    and a 256-byte table.
    """
    activation = Activation.parse(text)
    _check_options(sweep)
    header = None if emitted is None else _header_file(emitted, activation, source)
    _refuse_files({"-o": output, "--plot": plot, "--emit-c": header}, force=force)
    if plot:
        from gemedge.cli.activation_plot import check_plot

        check_plot(plot)
    if sweep:
        from gemedge.cli.activation_sweep import run_sweep

        run_sweep(activation, ns, epsilons, formats, jobs, output, plot, as_json=as_json, force=force, quiet=quiet)
        return
    kernel = FixedActivation(activation, read_params(source), read_params(target))
    methods = compare(kernel)
    for line in notes(kernel, methods[0].outputs):
        note(line, quiet=quiet)
    stored = to_json(kernel, methods[0].certificate)
    written: dict[Path, bytes] = {}
    if plot:
        from gemedge.cli.activation_plot import draw

        written[plot] = draw(kernel, methods, plot.suffix[1:])
    if output:
        written[output] = as_bytes(stored)
    if header:
        from gemedge.export.activation_header import activation_header

        written[header] = activation_header(kernel, methods[0].certificate, header.stem)
    files.write(written, force=force)
    if as_json:
        print_json({**stored, "comparison": [method.as_json() for method in methods]})
    else:
        _print(kernel, methods)


def _header_file(given: str, activation: Activation, source: str) -> Path:
    """The header to write: as given, or named after the activation and its input."""
    path = Path(given or f"{re.sub(r'[^a-z0-9]+', '_', f'{activation} {source}'.lower()).strip('_')}.h")
    if path.suffix not in (".h", ".hpp"):
        raise UsageError(f"--emit-c {path}: the file of a C header ends in .h")
    return path


def _refuse_files(named: dict[str, Path | None], *, force: bool) -> None:
    """Refuse files that exist, and one that two options name."""
    seen: dict[Path, str] = {}
    for option, path in named.items():
        if path is None:
            continue
        if path.resolve() in seen:
            raise UsageError(f"{seen[path.resolve()]} and {option} both name {path}; give each a file")
        seen[path.resolve()] = option
        files.refuse_existing(path, force=force)


def _check_options(sweep: bool) -> None:
    """Refuse an option that would have no effect."""
    context = click.get_current_context()
    for name, option in _ONE_MODE_OPTIONS.items():
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            if sweep and name in ("source", "target"):
                raise UsageError(f"{option} is not for --sweep, which takes --formats")
            if sweep and name == "emitted":
                raise UsageError(f"{option} is not for --sweep, which makes many kernels")
            if not sweep and name not in ("source", "target", "emitted"):
                raise UsageError(f"{option} is for --sweep; give that too")


_ONE_MODE_OPTIONS = {
    "source": "--in",
    "target": "--out",
    "emitted": "--emit-c",
    "ns": "--ns",
    "epsilons": "--epsilons",
    "formats": "--formats",
    "jobs": "--jobs",
}


def notes(kernel: FixedActivation, outputs: np.ndarray) -> list[str]:
    """What a user should know where the formats leave little of the activation."""
    activation, source, target = kernel.activation, kernel.in_params, kernel.out_params
    epsilon, lsb = str(np.float32(activation.epsilon)), target.scale
    if outputs.size and outputs.min() == outputs.max():
        return [f"every output from {source} to {target} is {outputs[0]}: nothing of {activation} is left there"]
    found = []
    if activation.family == "gem" and activation.exact_epsilon < target.exact_scale:
        relu = FixedActivation(_RELU, source, target)(inputs_to_check(source))
        differing = int(np.count_nonzero(outputs != relu))
        relation = "is ReLU there, and the kernel too"
        if differing:
            relation = f"is within one LSB of ReLU there; {differing:,} of {outputs.size:,} codes differ"
        found.append(f"epsilon {epsilon} is below one LSB of {target} ({lsb:.4g}): GEM {relation}")
    elif activation.family == "segem" and 2 * activation.exact_epsilon < target.exact_scale:
        found.append(f"epsilon {epsilon} is below half an LSB of {target} ({lsb:.4g}): SE-GEM is ReLU there")
    saturated = float(np.mean((outputs == target.raw_max) | (outputs == target.raw_min)))
    if saturated > 0.25:
        found.append(f"{saturated:.0%} of the inputs checked saturate {target}")
    return found


def _print(kernel: FixedActivation, methods: list[Method]) -> None:
    click.echo(f"{kernel.activation} from {kernel.in_params} to {kernel.out_params}")
    click.echo(f"{methods[0].certificate}")
    rows = [
        [
            method.name,
            f"{method.certificate.max_error:.6g}",
            f"{method.certificate.misrounded:,}",
            f"{method.flash_bytes:,}",
            str(method.multiplies),
            str(method.look_ups),
        ]
        for method in methods
    ]
    print_table(["method", "max error, LSB", "misrounded", "flash bytes", "multiplies", "look-ups"], rows)
    if methods[0].flash_bytes > SHARED_BYTES and methods[0].name == "reciprocal kernel":
        click.echo(f"flash: constants, of them {SHARED_BYTES} bytes shared by all kernels; code is not counted")
