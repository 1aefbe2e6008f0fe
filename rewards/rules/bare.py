"""Bare math-verify, to compare with (`rewards.audit against=math_verify`)."""


def math_verify_verdict(reference: str, response: str) -> float:
    """What `verify(parse(reference), parse(response))` says. Only for killable workers."""
    # Inside the function: math-verify takes seconds to load.
    from math_verify import parse, verify

    no_timeout = None  # the worker can be killed, and signal.alarm does not work in all of them
    wanted = parse(reference, parsing_timeout=no_timeout)  # pyright: ignore[reportArgumentType]
    if not wanted:
        wanted = parse(f"${reference}$", parsing_timeout=no_timeout)  # pyright: ignore[reportArgumentType]
    given = parse(response, parsing_timeout=no_timeout)  # pyright: ignore[reportArgumentType]
    return float(verify(wanted, given, timeout_seconds=no_timeout))
