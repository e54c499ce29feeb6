"What the library does after some time, awaited"
import threading


def timers(): return [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]


def await_timers():
    "Until all have rung"
    for timer in timers(): timer.join(60)
