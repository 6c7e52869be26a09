"""Recipes: which columns the raw files have and how each field is encoded."""
