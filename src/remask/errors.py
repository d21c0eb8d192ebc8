"""The one error a user ever sees; a module of its own, so that a mistake is answered before torch is imported."""


class UserError(Exception):
    """A mistake that one line explains: what, where, and what to do. The command line prints it and exits with 2."""


__all__ = ["UserError"]
