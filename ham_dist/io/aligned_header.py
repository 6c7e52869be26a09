"""The beginning of safetensors files whose tensors are used as mapped."""

ALIGNMENT = 64
"""Tensors start at a multiple of this many bytes in their file: a cache line, and any vector load."""


def aligned_header(text: bytes) -> bytes:
    """Returns the beginning of a safetensors file: a length in 8 bytes, and JSON with spaces behind it.

    Args:
        text: The JSON.
    Returns:
        A multiple of ALIGNMENT bytes.
    """
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text
