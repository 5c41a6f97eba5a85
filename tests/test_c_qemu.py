"""The exported C on boards that QEMU emulates: every layer of a small network as gcc compiles it for each CPU."""

import pytest
from boards import BOARDS, printed, program
from test_c_avr import assert_simulates
from test_c_clean import exported

from gemedge.export.selftest_log import read_log

pytestmark = pytest.mark.exhaustive


@pytest.fixture(scope="module", params=["int8", "int16x8", "q15"])
def network(request, tmp_path_factory):
    """A folder with the C of a network and its self-test, the model, and the inputs that the test takes."""
    folder = tmp_path_factory.mktemp(request.param)
    return folder, *exported("cnn", request.param, folder)


@pytest.mark.parametrize("level", ["-O0", "-O2", "-O3", "-Os"])
@pytest.mark.parametrize("board", BOARDS)
def test_every_layer_on_an_emulated_board_has_the_simulators_integers(board, level, network):
    folder, model, given = network
    log = read_log(printed(BOARDS[board], program(BOARDS[board], folder, ["selftest.c"], [level])))
    assert_simulates(log, model, given)
