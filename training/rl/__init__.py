"""Alignment by rewards: what is pure in it, and the policies that it moves. The scripts are `training/grpo.py` and
`training/dpo.py`."""
