from __future__ import annotations

import time

from distml.tracking.outbox import Watch


def test_samples_are_taken_until_it_is_closed_and_steps_ascend() -> None:
    taken: list[tuple[int, dict[str, float]]] = []
    watch = Watch(lambda step, values: taken.append((step, values)), time.time() - 3600, interval_s=0.05)
    deadline = time.monotonic() + 60
    while len(taken) < 2:
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


def test_a_short_run_has_the_sample_of_its_end_and_no_step_comes_twice() -> None:
    taken: list[int] = []
    Watch(lambda step, _: taken.append(step), time.time(), interval_s=60).close()
    assert len(taken) == 1
    watch = Watch(lambda step, _: taken.append(step), time.time() - 100, interval_s=0.02)
    time.sleep(1.5)
    watch.close()
    assert taken == sorted(set(taken))
