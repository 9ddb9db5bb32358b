"""onesearch: end-to-end generative product search, from a shopping log to served results."""

__version__ = "0.1.0"
