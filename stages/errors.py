"""The ways in which a stage ends early on purpose. Anything else is a bug and shows its traceback."""


class BadInput(Exception):
    """Params or input that cannot be used. One line: what, where, how to mend it. Exit code 2."""


class Failed(Exception):
    """The work cannot be finished, through no fault of the params' form. One line, with the mend. Exit code 1."""


class Stopped(BaseException):
    """A signal asked the stage to end. What was done is kept. Exit code 130.

    Derives from BaseException, as KeyboardInterrupt does, so that `except Exception` lets it pass.
    """
