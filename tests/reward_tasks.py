"""What the tests make reward workers do. Workers import this module, so it is a light one."""

import os
import sys
import time


def sleep_for_ever():
    time.sleep(3600)


def hang_in_c():
    return len(str(pow(7, 10**9)))


def eat_memory():
    return len(bytearray(2**33))


def crash():
    os._exit(3)


def loaded_modules():
    return sorted({"torch", "ray", "vllm", "sympy"} & set(sys.modules))
