"""Training scripts, each for `accelerate launch`, and the parts that only training needs."""
