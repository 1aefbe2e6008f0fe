"""Ctrl-C and a scheduler's SIGTERM: the run saves and ends, within a stated time."""

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Stop:
    """Whether a run is asked to end, and by what."""

    def __init__(self, grace_s: float) -> None:
        """grace_s: seconds from SIGTERM after which saving is given up (checkpoint.grace_s)."""
        self._grace_s = grace_s
        self.signals: list[signal.Signals] = []
        self.asked = asyncio.Event()
        self.gave_up = False
        """Whether the time was over before the run had ended."""

    @contextmanager
    def on_signals(self, note: Callable[[str], None]) -> Iterator[None]:
        """Let signals ask for a stop; a second Ctrl-C, or the end of the time, cancels the block.

        Where the time is over the block ends without an error, and `gave_up` is set.
        """
        if threading.current_thread() is not threading.main_thread():
            # Signals belong to the main thread, and to whoever runs this one: an arm of a sweep.
            yield
            return
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        timers: list[asyncio.TimerHandle] = []

        def give_up() -> None:
            self.gave_up = True
            task.cancel()

        def on_signal(number: signal.Signals) -> None:
            # A scheduler may send SIGTERM several times, to the shell and to what it started. Only
            # a person who asks twice cannot wait.
            if self.signals and number == signal.SIGINT:
                task.cancel()
            if number == signal.SIGTERM and not timers:
                timers.append(loop.call_later(self._grace_s, give_up))
            self.signals.append(number)
            self.asked.set()
            note("saving, then stopping; Ctrl-C again stops at once")

        # Ray has a handler of SIGTERM, which is to do its work again when the steps are over.
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        for number in before:
            loop.add_signal_handler(number, on_signal, number)
        try:
            yield
        except asyncio.CancelledError:
            if not self.gave_up:
                raise
            task.uncancel()
        finally:
            for timer in timers:
                timer.cancel()
            for number, handler in before.items():
                loop.remove_signal_handler(number)
                signal.signal(number, handler or signal.SIG_DFL)
