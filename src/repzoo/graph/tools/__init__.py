"""What every user of a graph needs: reading, constant folding, shapes, costs, export."""
