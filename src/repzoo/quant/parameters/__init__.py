"""From statistics to scales, zero points and integers, and the only writer of Q/DQ."""
