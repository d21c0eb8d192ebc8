"""One small function per paper; DM and JD plug into all of them."""

from remask.methods.beit import beit
from remask.methods.convmae import convmae
from remask.methods.crossmae import crossmae
from remask.methods.data2vec import data2vec
from remask.methods.dmae import dmae
from remask.methods.dmjd import dm, jd
from remask.methods.fastmim import fastmim
from remask.methods.localmim import localmim
from remask.methods.mae import mae
from remask.methods.maskfeat import maskfeat
from remask.methods.moma import moma
from remask.methods.simmim import simmim
from remask.methods.umae import umae

__all__ = [
    "beit",
    "convmae",
    "crossmae",
    "data2vec",
    "dm",
    "dmae",
    "fastmim",
    "jd",
    "localmim",
    "mae",
    "maskfeat",
    "moma",
    "simmim",
    "umae",
]
