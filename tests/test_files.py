"Names as they are shown and listed, paths as users write them, and files that are read only if they are files"
import errno
import json
import os
import stat
from pathlib import Path

import pytest
from helpers.odd import KINDS, no_file, within
from helpers.refusals import refusal

from fastcontrast.core import InputError
from fastcontrast.files import (NotAFile, check_file, from_list, listed, read_json, read_text, shown, user_path,
                                write_whole)

PLAIN = ['a.jpg', 'my pictures/ä ö 漢字 🙂.png', "it's [bold]:smile:", 'C:\\x', 'a"b', "'", '-x', 'a#b']
ODD = ['\x1b[2J', 'a\nb', 'a\r', '\ta', '\x00', '\x7f', '\x9b31m', 'a\u2028b', 'a\x85b', '\u202egnp.exe', '\udcff.jpg',
       '\ud800', ' a', 'a ', '#a', '"a"', '\u200e']


def test_a_file_is_written_where_no_folder_can_be_synced(tmp_path, monkeypatch):
    fsync = os.fsync
    def of_files_alone(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode): raise OSError(errno.EINVAL, 'Invalid argument')
        fsync(handle)
    monkeypatch.setattr(os, 'fsync', of_files_alone)
    write_whole(tmp_path/'a', 'x')
    assert (tmp_path/'a').read_text() == 'x'


@pytest.mark.parametrize('name', PLAIN)
def test_plain_names_are_shown_and_listed_as_they_are(name):
    assert shown(name) == listed(name) == from_list(name) == name


@pytest.mark.parametrize('name', ODD)
def test_odd_names_come_through_a_list(name):
    line = listed(name)
    assert line.splitlines() == [line] and line.isprintable() and line.encode()
    assert from_list(f'  {line}\t') == name
    assert shown(name).isprintable() and shown(name).encode()


def test_how_odd_names_are_shown():
    assert shown('a\x1b[31m\n\udcff\u202e') == 'a\\x1b[31m\\n\\xff\\u202e' and shown(Path('x\t')) == 'x\\t'
    assert shown('a\nb\x1b', lines=True) == 'a\nb\\x1b' and shown('\ud800') == '\\ud800'


def test_lines_that_name_nothing_or_are_no_json():
    assert [from_list(line) for line in ('', '  ', '# a', '#"a"')] == [''] * 4
    assert from_list('"a".png') == '"a".png' and from_list('"') == '"'


def test_paths_of_users(monkeypatch, tmp_path):
    monkeypatch.setenv('HOME', str(tmp_path))
    assert user_path('~/x', 'a') == tmp_path/'x' and user_path(Path('~'), 'a') == tmp_path
    assert user_path('a/~/x', 'a') == Path('a/~/x')
    assert refusal(user_path, '', '--out') == "--out='' is no path: give the name of a file or folder."
    assert "--out='a\\x00' is no path" in refusal(user_path, 'a\0', '--out')
    assert 'cache=~nobody_is_called_this/x begins with the home folder of somebody unknown' in refusal(
        user_path, '~nobody_is_called_this/x', 'cache')


def test_paths_that_no_file_can_have():
    assert '… is too long to be the name of a file' in refusal(user_path, 'x' * 300, 'a')
    assert user_path('x' * 300 + '/{000..146}.tar', 'a') and user_path('{' + 'x,' * 300 + '}.tar', 'a')
    assert 'a=\\ud800 holds half a character' in refusal(user_path, '\ud800', 'a')


def test_paths_that_are_not_ones_own(monkeypatch):
    def lstat(path): raise PermissionError(errno.EACCES, 'Permission denied', path)
    monkeypatch.setattr('os.lstat', lstat)
    assert 'a=/root/x lies in a folder that you may not look into' in refusal(user_path, '/root/x', 'a')


@pytest.mark.parametrize('kind', KINDS)
def test_only_files_are_read(tmp_path, kind):
    path = no_file(tmp_path/'x', kind)
    for read in (check_file, read_text, read_json):
        with within(5), pytest.raises(NotAFile, match=KINDS[kind]): read(path)
    with pytest.raises(NotAFile, match='a folder, not a file'): check_file(tmp_path)
    with pytest.raises(FileNotFoundError): check_file(tmp_path/'none')
    (tmp_path/'link').symlink_to(__file__)
    assert check_file(tmp_path/'link').st_size == Path(__file__).stat().st_size


@pytest.mark.parametrize('content, reason', [
    (b'\xff', 'no text in UTF-8, at byte 0'), (b'[' * 100_000, 'nested too deeply'), (b'"\\ud800"', 'half a character'),
    (b'{"\\udfff": 1}', 'half a character'), (b'{', 'Expecting'), (b'', 'Expecting'),
    (b' ' * 2**21, 'larger than 1.0 MB'),
])
def test_json_that_can_not_be_used(tmp_path, content, reason):
    (tmp_path/'x').write_bytes(content)
    with pytest.raises(ValueError, match=reason) as caught: read_json(tmp_path/'x', most=2**20)
    assert not isinstance(caught.value, InputError)


def test_json_that_can(tmp_path):
    "Also names that are no UTF-8, as Python has them"
    for content in ({'a': [1, None]}, '\udcff.jpg', 'ä', [[[]]]):
        (tmp_path/'x').write_text('\ufeff' + json.dumps(content), encoding='utf-8')
        assert read_json(tmp_path/'x') == content
