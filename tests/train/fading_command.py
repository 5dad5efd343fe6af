"""The `deit` command, of whose images some become unreadable after the opening check, on one process or on all.

The environment says which: FADING is a regular expression for their paths, FADING_RANK the process (all without).
"""

from __future__ import annotations

import os
import re
import sys

from PIL import Image

from deit.cli import main
from deit.core.images.reading import ImageError
from deit.data.readers.image_folder import ImageFolder

_read = ImageFolder.image


def _fading(self: ImageFolder, index: int) -> Image.Image:
    path = str(self.paths[index])
    is_here = os.environ.get("FADING_RANK", os.environ.get("RANK")) == os.environ.get("RANK")
    if is_here and re.search(os.environ["FADING"], path):
        raise ImageError(f"{path} cannot be read as an image.")
    return _read(self, index)


if __name__ == "__main__":
    ImageFolder.image = _fading  # type: ignore[method-assign]
    sys.argv[0] = "deit"
    main()
