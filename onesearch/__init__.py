"""onesearch: end-to-end generative product search, from a shopping log to served results."""

import warnings

__version__ = "0.1.0"

# PyTorch says so of the first sparse matrix of every process; what is used of them here is tested.
warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state")
