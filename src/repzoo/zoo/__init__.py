"""The zoo: which models exist (`catalog`), how to build them (`families`), and their weights."""
