"""Processes that need not import what takes seconds: each is a fork of a server that did, and of nothing else."""
import multiprocessing

import torch.multiprocessing as mp

METHOD = "forkserver"
CONTEXT = multiprocessing.get_context(METHOD)
CONTEXT.set_forkserver_preload(["fastcontrast.all", "matplotlib.pyplot", "nbdev.showdoc", "nbdev.test"])


def start(process, *args, count=2):
    "`process(rank, *args)` in that many processes, as `mp.spawn` has it; what waits for them"
    return mp.start_processes(process, args, count, join=False, start_method=METHOD)
