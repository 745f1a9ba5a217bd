"""The zoo: what models there are (`catalog`, without torch) and how to build them (`families`, with torch)."""
