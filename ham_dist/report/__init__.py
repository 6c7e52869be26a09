"""Figures and tables of runs as one HTML file. Needs no torch."""
