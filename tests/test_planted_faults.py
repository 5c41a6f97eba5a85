"""Each fault that is planted in the C runtime or its generator makes a test fail."""

import shutil

import pytest
from boards import BOARDS
from planted_faults import COPIED, FAULTS, HELIUM, ROOT, survives


@pytest.fixture(scope="session")
def copy(tmp_path_factory):
    """The sources and tests, to plant faults in."""
    made = tmp_path_factory.mktemp("faults")
    for source in (ROOT / name for name in COPIED):
        (shutil.copytree if source.is_dir() else shutil.copy)(source, made / source.name)
    return made


def test_the_faults_are_many_and_each_is_another():
    assert len({(fault.file, fault.old, fault.new) for fault in FAULTS}) == len(FAULTS) >= 60


@pytest.mark.long
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.what)
def test_a_planted_fault_makes_a_test_fail(fault, copy):
    board = BOARDS["cortex-m55"]
    if fault.tests is HELIUM and not (shutil.which(board.compiler) and shutil.which(board.emulator[0])):
        pytest.skip(f"{board.compiler} or {board.emulator[0]} is not installed")
    assert not survives(fault, copy)
