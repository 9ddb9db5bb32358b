"""What the parts cost and what they are good for, measured: one file a claim, its last line one JSON object."""
