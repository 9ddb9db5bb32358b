"""The user in several views, one a file: what each reads of the log before a request, as arrays.

The modules that turn the arrays into encoder positions are in `onesearch.model.views`.
"""

from onesearch.context.views.reader import Source, ViewReader
from onesearch.context.views.settings import ViewSettings

__all__ = ["Source", "ViewReader", "ViewSettings"]
