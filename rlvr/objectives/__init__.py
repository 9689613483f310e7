"""What a step optimises: advantages, policy loss, penalties and their aggregation, as free functions on tensors.

Legend of shapes: B completions of a step or micro-batch, T completion tokens (padded to the longest), G group size.
"""
