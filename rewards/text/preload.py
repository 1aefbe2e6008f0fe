"""Imported once by the process that workers are forked from, before the first of them.

So every worker, also one that replaces a killed one, has sympy and pint loaded, the LaTeX parser's
tables built and the table of units read, and is ready in milliseconds instead of seconds.
"""

import logging

from rewards.rules.verifier import symbolic

# Says once per process that its timeouts are off, which is on purpose (rules/algebra.py).
logging.getLogger("math_verify").setLevel(logging.ERROR)
symbolic(r"\frac{1}{2}x^{2}", r"\sqrt{2}y")
symbolic("1 mile", "1.609344 km")
