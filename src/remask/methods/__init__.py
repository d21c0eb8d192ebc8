"""One small function per paper; DM and JD plug into all of them."""

from remask.methods.dmjd import dm, jd
from remask.methods.mae import mae

__all__ = ["dm", "jd", "mae"]
