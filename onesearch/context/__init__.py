"""What the generator reads: the query's tokens, and the purchases of the user that matter for it."""
