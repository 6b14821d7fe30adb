"""Cases of a parametrized test: the quick ones by default, all others among the slow tests."""

from collections.abc import Iterable
from typing import Any

import pytest


def quick_and_slow(quick: Iterable[tuple], every: Iterable[tuple]) -> list[Any]:
    """Return every case, marked slow unless it is among the quick ones."""
    kept = list(quick)
    return [case if case in kept else pytest.param(*case, marks=pytest.mark.slow) for case in every]
