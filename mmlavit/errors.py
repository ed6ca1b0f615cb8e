"""The error for what a config asks of mmlavit's classes and cannot have."""


class ConfigError(ValueError):
    """An argument out of its range or a combination that cannot work; the message is one line.

    The command line tools print it without a stack trace.
    """
