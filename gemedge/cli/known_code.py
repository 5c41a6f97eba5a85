"""Which folders of C this user exported: digests in the cache folder, so that their code may run here unasked."""

from gemedge import files
from gemedge.errors import OutputError
from gemedge.export.run import cache_folder

_FOLDER = "exported"


def remember(digest: str) -> None:
    """Keep the digest; where there is no place for it that is safe, the folder's code is asked about like others'."""
    try:
        place = cache_folder() / _FOLDER
        files.write_folder(place, {digest: b""}, force=True)
    except OutputError:
        return


def is_known(digest: str) -> bool:
    """Whether this user exported code of this digest."""
    try:
        return (cache_folder() / _FOLDER / digest).is_file()
    except OutputError:
        return False
