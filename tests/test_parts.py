"""The parts of the long tests that CI runs one at a time are all of them."""

import argparse

import pytest
from conftest import part


@pytest.mark.parametrize("parts", [1, 2, 5, 20])
def test_parts_have_each_test_once_and_are_of_one_size(parts):
    tests = list(range(13))
    found = [tests[part(f"{number}/{parts}")] for number in range(1, parts + 1)]
    assert sorted(test for each in found for test in each) == tests
    sizes = {len(each) for each in found}
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("text", ["0/5", "6/5", "1/0", "5", "1/5/2", "-1/5", ""])
def test_what_is_no_part_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="is not K/N with 1 <= K <= N"):
        part(text)
