"""The clock of `thera bench`."""

from __future__ import annotations

from ensemble.bench.clock import images_per_second


def test_each_round_has_its_speed_and_the_first_one_is_not_counted() -> None:
    time, seconds = [100.0], iter([99.0, 1.0, 2.0, 4.0])

    def work() -> int:
        time[0] += next(seconds)
        return 8

    assert images_per_second(work, 3, now=lambda: time[0]).tolist() == [8, 4, 2]
    assert next(seconds, None) is None
