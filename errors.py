"""The one exception a user's mistake raises, in any room."""


class UserError(ValueError):
    """Bad input: a file, a value or an option that the user can mend.

    The message is one sentence that names the file, the value and the remedy. `train.py` prints it as
    `error: <message>` and exits with status 2; any other exception is a bug and keeps its traceback.
    """
