"""Settings of a server: the model, the sources, the parsing of values, and the texts of `--help`."""

from tusd_py.settings.model import ENV_PREFIX, FIELDS, Settings, default_of, flag_name, value_of, variable_name
from tusd_py.settings.overrides import SettingsOverrides
from tusd_py.settings.sources import (
    InvalidSettings,
    Loaded,
    cross_check,
    did_you_mean,
    from_arguments,
    load,
    unknown_variables,
)

__all__ = [
    "ENV_PREFIX",
    "FIELDS",
    "InvalidSettings",
    "Loaded",
    "Settings",
    "SettingsOverrides",
    "cross_check",
    "default_of",
    "did_you_mean",
    "flag_name",
    "from_arguments",
    "load",
    "unknown_variables",
    "value_of",
    "variable_name",
]
