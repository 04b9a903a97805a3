"""What the sections of extensions share. It is in `config.extensions`: the top level of a config has such a section."""

from easydistill.config.extensions import NamedSections as NamedSections
from easydistill.config.extensions import configs_of as configs_of
from easydistill.config.extensions import members as members
from easydistill.config.extensions import names_itself as names_itself
from easydistill.config.extensions import refusing as refusing
from easydistill.config.extensions import section_of as section_of
