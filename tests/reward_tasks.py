"""What the tests make reward workers do. Workers import this module, so it is a light one."""

import os
import resource
import signal
import sys
import time


def sleep_for_ever():
    time.sleep(3600)


def tell_and_sleep(path):
    """Make an empty file, so that a test knows when this began."""
    with open(path, "x"):
        time.sleep(3600)


def hang_in_c():
    return len(str(pow(7, 10**9)))


def eat_memory():
    return len(bytearray(2**33))


def eat_memory_slowly():
    kept = []
    while True:
        kept.append(bytearray(2**20))


def crash():
    os._exit(3)


def crash_in_c():
    os.kill(os.getpid(), signal.SIGSEGV)


def leave():
    sys.exit("enough")


def recurse():
    return recurse()


def square(number):
    return number * number


def megabytes(count):
    return "x" * (count * 2**20)


def not_a_value():
    return object()


def resident_mib():
    """Memory this process holds, in MiB."""
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize() / 2**20


def loaded_modules():
    """The heavy ones, as text: a worker sends back no list."""
    return ", ".join(sorted({"torch", "ray", "vllm", "sympy"} & set(sys.modules)))
