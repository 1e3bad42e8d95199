"""Standard output, which is one for all threads."""

import contextlib
import sys

import pytest

from sbi_jeffreys.utils.quiet import quiet


@pytest.fixture(autouse=True)
def output_as_before():
    """A failure here must not silence the tests after it."""
    before = sys.stdout
    yield
    sys.stdout = before


def test_swallows_until_it_ends(capsys):
    with quiet():
        sys.stdout.write("inside\n")
    sys.stdout.write("after\n")
    assert capsys.readouterr().out == "after\n"


def test_puts_output_back_where_threads_overlap():
    """One that began first ends first, as the threads of a pool do."""
    before = sys.stdout
    first, second = contextlib.ExitStack(), contextlib.ExitStack()
    first.enter_context(quiet())
    second.enter_context(quiet())
    first.close()
    assert sys.stdout is not before
    second.close()
    assert sys.stdout is before


def test_puts_output_back_after_an_error():
    before = sys.stdout
    with pytest.raises(KeyError), quiet():
        raise KeyError
    assert sys.stdout is before
