"""What goes wrong, said in one line: the thing, its value, and what to do."""


class PerceiverVLError(Exception):
    """Base of the errors that perceiver-vl raises on purpose; the command line prints the message and exits with 1."""


class UsageError(PerceiverVLError, ValueError):
    """A value that somebody typed (an option, a recipe key, a configuration) cannot work; the command line exits
    with 2.
    """
