"""The feedback store: events, raters and clusters in one SQLite file."""
