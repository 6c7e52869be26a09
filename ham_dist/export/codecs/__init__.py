"""Codecs: how a bundle stores the numbers of its tables, one file each."""
