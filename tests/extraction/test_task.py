import threading
import time

import pytest

from featcache.extraction.task import Writer


def test_everything_is_done_in_order_when_the_block_ends():
    done = []
    with Writer() as writer:
        for i in range(20):
            writer.submit(lambda i=i: done.append(i))
    assert done == list(range(20))


def test_it_is_one_other_thread_and_little_is_under_way():
    threads, submitted, behind = set(), [0], []

    def work():
        threads.add(threading.current_thread())
        time.sleep(0.005)
        behind.append(submitted[0])

    with Writer() as writer:
        for i in range(10):
            writer.submit(work)
            submitted[0] = i
    assert len(threads) == 1
    assert threading.current_thread() not in threads
    assert all(ahead - place <= 1 for place, ahead in enumerate(behind))


def test_an_error_is_raised_by_what_comes_next():
    def fail():
        raise OSError("disk full")

    def write(times):
        with Writer() as writer:
            for _ in range(times):
                writer.submit(fail)

    for times in (1, 2, 5):  # one shows when the block ends
        with pytest.raises(OSError, match="disk full"):
            write(times)


def test_an_interrupt_still_writes_what_was_submitted():
    done = []

    def write():
        with Writer() as writer:
            writer.submit(lambda: (time.sleep(0.02), done.append(1)))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert done == [1]
