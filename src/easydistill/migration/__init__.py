"""Configs of EasyDistill 1 and 2 → a config of this version that does the same, as far as there is an equal.

Every key of the old file is read, named as left out, or refused. Left out is what cannot change what a student learns,
and single settings without which the file is still of use; a stage without an equal, or a setting of a trainer that is
not known here, is refused. A file is written whole or not at all.
"""

from easydistill.migration.migrate import Migration, migrate

__all__ = ["Migration", "migrate"]
