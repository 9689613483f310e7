"""The order of prompts as a function of the epoch, so that a run can go on anywhere in it."""

from collections.abc import Callable, Iterator

from torch.utils.data import Sampler


class ReplayedOrder(Sampler[int]):
    """The order that one sampler has in its first, second, ... pass, given the number of the pass.

    A seeded sampler draws a new permutation at each pass, so that one made anew in a resumed run would begin again with
    the first. `make` returns the sampler as it is before its first pass, `epoch` the number of the pass to come.
    """

    def __init__(self, make: Callable[[], Sampler[int]], epoch: Callable[[], int]) -> None:
        self._make, self._epoch = make, epoch
        self._length = len(make())  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[int]:
        order = self._make()
        for _ in range(self._epoch()):
            next(iter(order))  # draws the permutation of one pass
        return iter(order)

    def __len__(self) -> int:
        return self._length
