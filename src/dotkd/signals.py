"""SIGINT and SIGTERM as a wish that the loop looks at between two steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

from dotkd import distributed


class StopRequest:
    """Falsy until a signal arrives."""

    def __init__(self) -> None:
        self.name: str | None = None

    def __bool__(self) -> bool:
        return self.name is not None

    def agreed(self) -> bool:
        """Whether a signal arrived in any of several processes, which have to ask together; it then has in all."""
        self.name = next(filter(None, distributed.gathered(self.name)), None)
        return bool(self)


@contextmanager
def stop_on_signal() -> Generator[StopRequest]:
    """Collect SIGINT and SIGTERM instead of dying of them; a second one has its usual effect.

    Under torchrun it has none: one signal may come twice there, from the system and from torchrun.
    Only the main thread can receive signals: elsewhere this does nothing.
    """
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def receive(number: int, frame: FrameType | None) -> None:
        stop.name = signal.Signals(number).name
        if not distributed.restartable():
            signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, receive)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
