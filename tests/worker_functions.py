"""What the processes of `test_workers` do."""

import os
import signal
import time


def behave(argument):
    kind, value = argument
    if kind == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if kind == "leave":
        os._exit(value)
    if kind == "sleep":
        time.sleep(value)
    if kind == "raise":
        raise ValueError(value)
    if kind == "print":
        print(value)
        os.write(1, b"from a library\n")
    return {"pid": os.getpid(), "value": value}
