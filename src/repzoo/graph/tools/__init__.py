"""What several layers need of graphs: reading, constant folding, sizes, costs, export."""
