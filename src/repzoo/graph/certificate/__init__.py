"""The proof that a folded graph equals its training form. It shares no reasoning with the fold.

certify        all checks, and the certificate that they make

The proof of each folded node:

proof          compares a folded node with what it replaces; the derivation of the bound
unchanged      finds the nodes that were folded
training_form  looks up what a folded node replaces
folded_node    a folded node with its weight
probes         the inputs of both
bounds         how far they may differ
adversarial    the same for hostile BatchNorm parameters

How the proof reads a graph:

index          by tensor names, through nodes that pass a tensor on
known_values   what follows from constants and sizes
evaluation     a part of a graph in float64
operators      ONNX operators in float64; window is where kernels land, attributes what nodes say

The comparison of the whole graphs:

whole_graph    for classifiers, on images
any_graph      for all other graphs
float64        where rounding hides the difference
comparison     the measured bound and the verdict
jitter         moves weights to measure that bound
number_types   how much each float type rounds
"""
