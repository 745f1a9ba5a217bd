"""The zoo: which models exist (`catalog`), how to build them (`families`, with torch), their weights."""
