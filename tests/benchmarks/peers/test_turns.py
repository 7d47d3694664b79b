from __future__ import annotations

import pytest
from turns import Match, Ratio, take_turns


class Bench:
    """Contestants that take given times, on a clock that they alone advance."""

    def __init__(self) -> None:
        self.time, self.order = 100.0, ""

    def contestant(self, name: str, images: int, *seconds: float):
        took = iter(seconds)

        def work() -> int:
            self.order += name
            self.time += next(took)
            return images

        return work

    def match(self, rounds: int, **contestants: tuple[float, ...]) -> Match:
        works = {name: self.contestant(name, int(n), *seconds) for name, (n, *seconds) in contestants.items()}
        return take_turns(works, rounds, now=lambda: self.time)


def test_each_round_has_its_own_ratio_and_the_warm_up_is_not_timed() -> None:
    bench = Bench()
    match = bench.match(3, a=(8, 99, 1, 2, 4), b=(2, 99, 1, 1, 0.5), c=(8, 99, 1, 2, 4))
    assert bench.order == "abc" * 4
    assert match.speeds["a"].tolist() == [8, 4, 2]
    assert match.speeds["b"].tolist() == [2, 2, 4]
    assert match.ratios == {"b": Ratio(2, 0.5, 4), "c": Ratio(1, 1, 1)}


def test_what_slows_all_alike_leaves_the_ratio() -> None:
    match = Bench().match(4, a=(1, 1, 1, 2, 3, 9), b=(1, 1, 3, 6, 9, 27))
    assert match.ratios["b"] == pytest.approx((3, 3, 3))
