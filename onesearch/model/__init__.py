"""The generator: a Hugging Face backbone that scores the next code of a semantic ID."""

from onesearch.model.catalogue import Catalogue
from onesearch.model.context import Context
from onesearch.model.generator import Generator
from onesearch.model.generator_config import GeneratorConfig

__all__ = ["Catalogue", "Context", "Generator", "GeneratorConfig"]
