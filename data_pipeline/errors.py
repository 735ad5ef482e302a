"""The one exception for what a user or a file can get wrong."""


class InputError(ValueError):
    """Bad input. The message names the field, the value and the way out; entry points print it and exit with 2."""
