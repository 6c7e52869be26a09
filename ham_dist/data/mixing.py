"""A hash of numbers that is the same in every engine and version. Imports nothing."""

from typing import Any

LOW_32 = 0xFFFF_FFFF
"""Mask of the lower 32 bits."""


def mix(number: Any) -> Any:
    """Hashes numbers in [0, 2^32) one-to-one to [0, 2^32).

    The hash functions of engines differ between engines and versions; xor, shift, multiply and mask do not.
    Both factors are below 2^31, so that products fit in a signed 64-bit integer (engines handle overflow
    differently).

    Args:
        number: A Python integer, an array of int64, or an Ibis expression.

    Source: The xorshift-multiply form and the constants are from the search "hash-prospector" (two rounds).
    """
    number = number ^ (number >> 15)
    number = (number * 0x2C1B_3C6D) & LOW_32
    number = number ^ (number >> 12)
    number = (number * 0x297A_2D39) & LOW_32
    return number ^ (number >> 15)
