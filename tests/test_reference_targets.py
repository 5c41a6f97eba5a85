"""The reference networks, trained, on every emulated CPU that they fit: simulate's integers at every layer."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from boards import BOARDS, printed, program
from c_builds import written
from test_c_avr import assert_simulates, logged
from test_example_networks import run as run_example
from test_run import emulate

from gemedge import model_file
from gemedge.arena import plan
from gemedge.export.build import CPUS
from gemedge.export.selftest_log import read_log
from gemedge.export.to_c import Vectors
from gemedge.model import QuantizedModel
from gemedge.quant.simulate import border, entered, run, simulate

pytestmark = pytest.mark.long

SAMPLES = 16
BESIDE = 3072  # bytes of RAM beside the arena: the outputs, the self-test's own, and the stack
AVR_RAM = 16 * 1024


@dataclass(frozen=True)
class Row:
    """A network, the steps of its training, and of each scheme that runs the boards whose memory is too small."""

    script: str
    network: str
    steps: int
    schemes: Mapping[str, tuple[str, ...]]


SMALL = ("cortex-m0", "avr")  # 16 KB
ROWS = [
    Row("train_images.py", "mlp", 60, {"int8": ("avr",)}),  # a constant of 50 KB, beyond AVR's 32
    Row("train_images.py", "cnn", 100, {"int8": (), "int16x8": SMALL}),
    Row("train_images.py", "resnet8", 40, {"int8": SMALL}),
    Row("train_motion.py", "ds_cnn", 60, {"int8": SMALL}),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.network)
def test_a_reference_network_has_simulates_integers_on_every_cpu_that_it_fits(row, tmp_path):
    run_example(tmp_path, row.script, row.network, "--steps", str(row.steps))
    where = tmp_path / "models" / row.network
    (test,) = np.load(where / "test.npz").values()
    for scheme, too_small in row.schemes.items():
        model = model_file.load((where / f"{scheme}.gemq").read_bytes())
        given = {model.inputs[0]: test[:SAMPLES]}
        on_every_machine(model, given)
        on_every_board(model, given, too_small, tmp_path / scheme)


def on_every_machine(model: QuantizedModel, given: dict[str, np.ndarray]) -> None:
    """The CPUs of `gemedge run`."""
    integers = entered(model, border(model, given), Counter())
    wanted = run(model, integers, keep=model.tensors)
    for cpu in CPUS:
        emulate(model, integers, wanted, cpu, samples=SAMPLES)


def on_every_board(
    model: QuantizedModel, given: dict[str, np.ndarray], too_small: tuple[str, ...], folder: Path
) -> None:
    """The self-test by apt's compilers, on QEMU's boards and on AVR."""
    vectors = Vectors(entered(model, border(model, given), Counter()), simulate(model, given, raw=True))
    written(model, folder, vectors=vectors)
    ram = plan(model).size + BESIDE
    for name, board in BOARDS.items():
        assert (name in too_small) == (bool(board.machine) and ram > board.ram_size), (name, ram)
        if name not in too_small:
            log = read_log(printed(board, program(board, folder, ["selftest.c"], ["-O2"])))
            assert_simulates(log, model, given)
            assert log.samples == SAMPLES
    assert "avr" in too_small or ram <= AVR_RAM
    if "avr" not in too_small:
        assert_simulates(logged(model, given, folder / "avr", ["-O2"]), model, given)
