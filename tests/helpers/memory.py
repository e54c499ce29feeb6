"What makes the memory that a process takes the same on every machine"
import ctypes

PR_SET_THP_DISABLE = 41


def small_pages():
    "This process gets no huge pages, which count as a whole when a byte of them is touched"
    ctypes.CDLL(None).prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0)
