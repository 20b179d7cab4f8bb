"""Recipes: what may stand in them, how they are read, how they are shown."""
