"""A test is found from its module by name: every module has its file, or a row in tests/support/tested_by.py."""

from __future__ import annotations

from tests.support.tested_by import TESTED_BY, TESTS, files_of, modules


def test_every_module_is_tested_by_a_file_that_can_be_found():
    lost = [module for module in modules() if not files_of(module) and module not in TESTED_BY]
    assert not lost, f"name a test file after them, import them in one, or add a row: {lost}"


def test_the_table_names_what_is_there():
    gone = sorted(set(TESTED_BY) - set(modules()))
    missing = sorted({name for name in TESTED_BY.values() if not (TESTS / name).is_file()})
    assert not gone, f"no such modules any more: {gone}"
    assert not missing, f"no such test files any more: {missing}"
