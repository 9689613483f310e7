"""Every planted fault still has its place in the code: one whose text is gone would never be planted."""

import pytest

from tests.golden.mutants import MUTANTS, ROOT, Mutant, mutate


@pytest.mark.parametrize("file", sorted({mutant.file for mutant in MUTANTS}))
def test_old_text_occurs_exactly_once(file: str) -> None:
    source = (ROOT / "rlvr" / file).read_text(encoding="utf-8")
    for mutant in (each for each in MUTANTS if each.file == file):
        assert mutate(source, mutant) != source


def test_named_tests_exist() -> None:
    def files(mutant: Mutant) -> list[str]:
        return [test.partition("::")[0] for test in mutant.tests]

    assert all((ROOT / file).exists() for mutant in MUTANTS for file in files(mutant))
