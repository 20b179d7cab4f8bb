"""Rows: their shapes and faults, where they come from, how they are split."""
