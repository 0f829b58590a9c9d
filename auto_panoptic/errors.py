"""The one exception that means "the input is wrong, and this is how to mend it"."""


class UserError(ValueError):
    """A mistake in a config, a file or an argument.

    The message is one line: what is wrong, where, what is allowed, and the remedy. The command line tools
    print it without a traceback and exit with code 2.
    """
