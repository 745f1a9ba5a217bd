"""Reports: cards and tables, rendered from Records."""
