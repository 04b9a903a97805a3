"""Images of rows: bytes in, digest out. Messages hold digests; what everybody looks at is one normalised copy.

- `normalise.py`: an image as given → the copy, or the reason why there is none.
- `store.py`: the copies of a run, by digest; as files, and as data URLs for servers.
- `reader.py`: what a row holds (a path, a data URL, bytes, an address) → digests, and which of these may be read.
- `fetching.py`: images from the network, where the config asks for that.
- `sources.py`: the files that a stage has read, so that a changed one is noticed.
"""

from easydistill.data.images.normalise import NORMALISER
from easydistill.data.images.reader import ImageReader, NoImages, RowImages
from easydistill.data.images.store import ImageStore

__all__ = ["NORMALISER", "ImageReader", "ImageStore", "NoImages", "RowImages"]
