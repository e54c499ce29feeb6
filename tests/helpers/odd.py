"Files that hang, flood or lie, written without their size in memory"
import os
import signal
import socket
import struct
import zlib
from contextlib import contextmanager


@contextmanager
def within(seconds):
    "What waits for ever fails instead"
    def late(*args): raise TimeoutError(f'not done after {seconds} seconds')
    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try: yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def no_file(path, kind):
    "A pipe, a socket, or a link to a device, where a file is looked for"
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == 'pipe': os.mkfifo(path)
    if kind == 'device': path.symlink_to('/dev/zero')
    if kind == 'socket':
        here = os.getcwd()
        os.chdir(path.parent)  # such a name may have 107 bytes
        with socket.socket(socket.AF_UNIX) as made: made.bind(path.name)
        os.chdir(here)
    return path


KINDS = dict(pipe='a named pipe, not a file', socket='a socket, not a file', device='a device, not a file')
# kinds of PNG: type of colour, bits, and samples of a pixel
PNGS = dict(grey1=(0, 1, 1), grey8=(0, 8, 1), grey16=(0, 16, 1), rgb8=(2, 8, 3), rgb16=(2, 16, 3), palette1=(3, 1, 1),
            palette8=(3, 8, 1), grey_alpha8=(4, 8, 2), grey_alpha16=(4, 16, 2), rgb_alpha8=(6, 8, 4),
            rgb_alpha16=(6, 16, 4))


def chunk(name, content):
    "A part of a PNG"
    return struct.pack('>I', len(content)) + name + content + struct.pack('>I', zlib.crc32(name + content))


def png(width, height, kind):
    "The file of a picture of zeros; a palette is half transparent"
    colour, depth, samples = PNGS[kind]
    row, pack = b'\0' * (1 + -(-width * depth * samples // 8)), zlib.compressobj(1)
    packed = b''.join([pack.compress(row) for _ in range(height)]) + pack.flush()
    parts = [chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, depth, colour, 0, 0, 0))]
    if colour == 3: parts += [chunk(b'PLTE', bytes(6)), chunk(b'tRNS', b'\x80\xff')]
    return b'\x89PNG\r\n\x1a\n' + b''.join([*parts, chunk(b'IDAT', packed), chunk(b'IEND', b'')])


def ico(inner, side=16):
    "A Windows icon that says how large it is, and holds another picture"
    return struct.pack('<HHHBBBBHHII', 0, 1, 1, side, side, 0, 0, 1, 32, len(inner), 22) + inner


def icns(inner):
    "A Mac's"
    return b'icns' + struct.pack('>I', len(inner) + 16) + b'ic07' + struct.pack('>I', len(inner) + 8) + inner
