"""From measurements to a verdict, and to the active adapter of an update chain."""
