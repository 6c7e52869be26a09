"""Packages of a bundle for other servers; one file for each format."""
