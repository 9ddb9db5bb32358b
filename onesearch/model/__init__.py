"""The generator: a Hugging Face backbone that scores the next code of a semantic ID."""

from onesearch.model.catalogue import Catalogue
from onesearch.model.generator import Context, Generator, GeneratorConfig

__all__ = ["Catalogue", "Context", "Generator", "GeneratorConfig"]
