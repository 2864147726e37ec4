from __future__ import annotations

import time

from distml.tracking.machine import Watch


def test_samples_are_taken_until_it_is_closed_and_steps_ascend() -> None:
    taken: list[tuple[int, dict[str, float]]] = []
    watch = Watch(lambda step, values: taken.append((step, values)), time.time() - 3600, interval_s=0.05)
    deadline = time.monotonic() + 60
    while len(taken) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    watch.close()
    count = len(taken)
    steps = [step for step, _ in taken]
    assert steps == sorted(steps)
    assert 3600 <= steps[0] < 3700
    assert {"system/cpu_utilization_percentage", "system/network_receive_megabytes"} <= taken[-1][1].keys()
    time.sleep(0.2)
    assert len(taken) == count
