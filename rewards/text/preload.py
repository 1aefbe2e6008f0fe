"""Imported once by the process that workers are forked from, before the first of them.

So every worker, also one that replaces a killed one, has sympy and pint loaded, the LaTeX parser's
tables built and the table of units read, and is ready in milliseconds instead of seconds.
"""

import logging

from rewards.rules.kinds.expressions import same_expression
from rewards.rules.kinds.quantities import convert_quantity

# Says once per process that its timeouts are off, which is on purpose (rules/expressions.py).
logging.getLogger("math_verify").setLevel(logging.ERROR)
same_expression(r"\frac{1}{2}x^{2}", r"\sqrt{2}")
convert_quantity("1 mile", "1.609344 km")
