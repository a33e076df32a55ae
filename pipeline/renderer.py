"""The process that renders: requests come in by a connection, views go out by shared memory.

It decodes what strangers encoded. Should a decoder crash or hang, this process dies of it (the
kernel's alarm needs no cooperation), and the pool that started it takes note.
"""

import os
import queue
import signal
import sys
import threading
from multiprocessing.connection import Connection

import torch

from pipeline.rendering import RenderPlan, Request, Slab, render_into


def main(connection: int, slab: int, slots: int, size: int, seconds: float) -> None:
    """Serve requests until the other end closes; all numbers but `seconds` are descriptors, counts.

    seconds: the most that one sample may take, by the wall clock; one more for each further view.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is the parent's to handle
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    torch.set_num_threads(1)
    memory = Slab(slots, size, slab)
    plan: RenderPlan | None = None
    inbox: queue.SimpleQueue[RenderPlan | Request | None] = queue.SimpleQueue()
    with Connection(connection) as channel:
        # Read at once, so that whoever asks is never held up by a full pipe.
        threading.Thread(target=_read, args=(channel, inbox), daemon=True).start()
        channel.send(None)  # ready
        while (message := inbox.get()) is not None:
            if isinstance(message, RenderPlan):
                plan = message
                continue
            assert plan is not None
            signal.setitimer(signal.ITIMER_REAL, seconds + plan.last - plan.first)
            rendered = render_into(memory, plan, message)
            signal.setitimer(signal.ITIMER_REAL, 0)
            try:
                channel.send((message.slot, rendered))
            except OSError:  # the other end is gone
                return


def _read(channel: Connection, inbox: "queue.SimpleQueue[RenderPlan | Request | None]") -> None:
    try:
        while True:
            inbox.put(channel.recv())
    except (EOFError, OSError):  # the other end is gone
        pass
    finally:  # or this process has no memory for what it is asked: it ends, another may have
        inbox.put(None)


if __name__ == "__main__":
    _connection, _slab, _slots, _size = map(int, sys.argv[1:5])
    main(_connection, _slab, _slots, _size, float(sys.argv[5]))
    os._exit(0)  # nothing is left to tidy, and torch takes its time
