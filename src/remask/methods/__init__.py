"""One small function per paper; DM, JD and guided masks plug into all of them."""

from remask.methods.beit import beit
from remask.methods.convmae import convmae
from remask.methods.crossmae import crossmae
from remask.methods.data2vec import data2vec
from remask.methods.dmae import dmae
from remask.methods.dmjd import dm, jd
from remask.methods.fastmim import fastmim
from remask.methods.guided import guided_by_attention, guided_by_loss
from remask.methods.localmim import localmim
from remask.methods.mae import mae
from remask.methods.maskfeat import maskfeat
from remask.methods.moma import moma
from remask.methods.refiner import refiner
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
    "guided_by_attention",
    "guided_by_loss",
    "jd",
    "localmim",
    "mae",
    "maskfeat",
    "moma",
    "refiner",
    "simmim",
    "umae",
]
