"""Objects as the files below a directory: found and written without ever leaving it, and never seen half-written."""

from __future__ import annotations

import errno
import itertools
import os
import stat
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO, TypeVar

from ..errors import ObjectStoreError, ObjectStoreTransientError
from .object_paths import INCOMING, object_name, object_path
from .span import Span
from .syncing import sync_all

if TYPE_CHECKING:
    from typing_extensions import Buffer

_MISSING = frozenset((errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG))
_UNSTORABLE = frozenset(
    (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTEMPTY, errno.EXDEV)
)
_NO_HARD_LINKS = frozenset((errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK))
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY
_DIRECTORIES_KEPT = 64
_RANDOM = uuid.uuid4().hex
_NUMBERS = itertools.count()
_RACES = 100
"""How often somebody else may remove an empty directory just before it is used."""

T = TypeVar("T")


class FileTree:
    """The objects that are the regular files below `root`, which comes into being with the first of them.

    Symbolic links are followed as long as they stay below `root`; beyond that there is nothing.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(os.path.realpath(root))
        self._inside = str(self.root).rstrip("/") + "/"
        self._entered: dict[str, _Directory] = {}
        self._lock = threading.Lock()
        """Of `_entered`."""
        self.owner = ""
        """Part of the names of files that are not whole yet."""

    def path(self, name: str) -> Path:
        """The file that the object is, or would be.

        Raises:
            ValueError: no file can have this name.
        """
        return self.root / object_path(name)

    def scan(self, prefix: str = "") -> Iterator[tuple[str, os.stat_result]]:
        """The objects whose names begin with `prefix`, in no order, read from the directories as it goes.

        Directories that are links are passed over, lest they go in circles.

        Raises:
            OSError: a directory cannot be read.
        """
        parent, slash, rest = prefix.rpartition("/")
        directory = self.path(parent) if slash else self.root
        if os.path.realpath(directory) == str(directory):
            yield from self._scan(str(directory), rest)

    def _scan(self, directory: str, prefix: str) -> Iterator[tuple[str, os.stat_result]]:
        try:
            entries = os.scandir(directory)
        except OSError as error:
            if error.errno in _MISSING:  # or removed since it was seen
                return
            raise
        with entries:
            for entry in entries:
                if entry.name.startswith(INCOMING) or not object_name(entry.name).startswith(prefix):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    yield from self._scan(entry.path, "")
                    continue
                try:
                    status = entry.stat()
                except OSError as error:
                    if error.errno in _MISSING:
                        continue
                    raise
                inside = not entry.is_symlink() or self._is_inside(os.path.realpath(entry.path))
                if inside and stat.S_ISREG(status.st_mode):
                    yield object_name(entry.path.removeprefix(self._inside)), status

    def stat(self, name: str) -> os.stat_result:
        """What the file system knows of the object.

        Raises:
            ValueError: no file can have this name.
            FileNotFoundError: there is no such object.
        """
        with self._find(name) as descriptor:
            return os.fstat(descriptor)

    def real_path(self, name: str) -> str:
        """Where the object really is: without links. Raises what `stat` raises."""
        with self._find(name) as descriptor:
            return _path_of(descriptor)

    def open(self, name: str) -> BinaryIO:
        """Open the object for reading. What is opened stays as it is while the object is replaced.

        Raises:
            ValueError: no file can have this name.
            FileNotFoundError: there is no such object.
        """
        with self._find(name) as descriptor:
            return Path(f"/proc/self/fd/{descriptor}").open("rb")

    def read(self, name: str) -> bytes:
        """All of the object at once. Raises what `open` raises."""
        with self._find(name) as found:
            descriptor = os.open(f"/proc/self/fd/{found}", os.O_RDONLY)
        try:
            size = os.fstat(descriptor).st_size
            whole = piece = os.read(descriptor, size + 1)
            if len(whole) == size:  # the byte beyond its end did not come, so this was the end
                return whole
            while piece := os.read(descriptor, size + 1):
                whole += piece
            return whole
        finally:
            os.close(descriptor)

    def write(self, name: str, data: Buffer) -> tuple[str, os.stat_result]:
        """Write a file that becomes the object with `settle`. Returns its name in the object's directory.

        Raises:
            ValueError, ObjectStoreError: as `create` does.
        """
        incoming = _incoming_name(self.owner)

        def create(directory: int, file: str) -> int:
            return os.open(incoming, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666, dir_fd=directory)

        try:
            descriptor = self._in_directory(name, create)
            try:
                rest = memoryview(data).cast("B")
                while rest:
                    rest = rest[os.write(descriptor, rest) :]
                return incoming, os.fstat(descriptor)
            finally:
                os.close(descriptor)
        except BaseException:
            self._drop(name, incoming)
            raise

    def settle(self, files: Sequence[tuple[str, str]]) -> list[Exception | None]:
        """Make the files that `write` wrote last, and then make them the objects, many at once.

        Args:
            files: names of objects, and of their files.

        Returns:
            For each what failed, or None. Nothing is left of a file that is not the object. Where only the sync of
            its directory failed, it is the object, until a crash of the machine may undo that.
        """
        errors: list[Exception | None] = [None] * len(files)
        directories: dict[str, _Directory] = {}
        placed: list[tuple[int, str, str, str]] = []
        for index, (name, incoming) in enumerate(files):
            parent, _, file = object_path(name).rpartition("/")
            try:
                if parent not in directories:
                    directories[parent] = self._directory(parent)
            except OSError as error:
                errors[index] = error
            else:
                placed.append((index, parent, incoming, file))
        outcomes = sync_all([(directories[parent].descriptor, incoming) for _, parent, incoming, _ in placed])
        for (index, parent, incoming, file), failure in zip(placed, outcomes, strict=True):
            try:
                if failure is not None:
                    raise failure
                _rename(incoming, file, directories[parent].descriptor)
            except OSError as error:
                errors[index] = _unstorable(error, self.path(files[index][0]))
        parents = list(directories)
        lost = dict(zip(parents, sync_all([(directories[each].descriptor, ".") for each in parents]), strict=True))
        for index, parent, _, _ in placed:
            errors[index] = errors[index] or lost[parent]
        for (name, incoming), failed in zip(files, errors, strict=True):
            if failed is not None:
                self._drop(name, incoming)
        return errors

    def remove_incoming(self, owner: str) -> None:
        """Remove the files that are not whole of an owner none of whose processes is alive."""
        begin = f"{INCOMING}-{owner}-"
        if not self.root.is_dir():
            return
        for directory, below, files, descriptor in os.fwalk(self.root):
            below[:] = [each for each in below if not each.startswith(INCOMING)]
            begun = [file for file in files if file.startswith(begin)]
            for file in begun:
                os.unlink(file, dir_fd=descriptor)
            if begun and directory != str(self.root):
                self.prune(object_name(os.path.relpath(directory, self.root)) + "/x")

    def _drop(self, name: str, incoming: str) -> None:
        """Leave nothing of a file that does not become the object."""
        try:
            directory = self._directory(object_path(name).rpartition("/")[0], create=False)
            os.unlink(incoming, dir_fd=directory.descriptor)
        except OSError:  # also where it has become the object
            pass
        self.prune(name)

    @contextmanager
    def create(self, name: str) -> Iterator[IncomingFile]:
        """Write an object, which there is not before `IncomingFile.commit`.

        Raises:
            ValueError: no file can have this name.
            ObjectStoreError: no file can be where the name says: something is in the way, a link leads out.
        """
        try:
            with self._begin(name) as incoming:
                yield incoming
        except BaseException:
            self.prune(name)
            raise

    def _begin(self, name: str) -> IncomingFile:
        def begin(directory: int, file: str) -> IncomingFile:
            own = os.dup(directory)
            try:
                return IncomingFile(own, file, self.path(name), self.owner)
            except BaseException:
                os.close(own)
                raise

        return self._in_directory(name, begin)

    def _in_directory(self, name: str, make: Callable[[int, str], T]) -> T:
        """What `make` makes of the descriptor of the object's directory, and of its file's name there."""
        parent, _, file = object_path(name).rpartition("/")
        for _ in range(_RACES):
            try:
                directory = self._directory(parent)
                return make(directory.descriptor, file)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise _unstorable(error, self.path(name)) from None
        raise ObjectStoreTransientError(f"{self.path(name)}: its directory is removed again and again")

    def _directory(self, parent: str, *, create: bool = True) -> _Directory:
        """A directory for writing. Refer to it as long as its descriptor is used: else another thread closes that."""
        with self._lock:
            directory = self._entered.get(parent)
        if directory is None or not directory.is_there():
            if create:
                _make(self.root)
            directory = _Directory(self._enter(parent.split("/") if parent else [], create=create))
            with self._lock:
                if len(self._entered) >= _DIRECTORIES_KEPT:
                    self._entered.clear()
                self._entered[parent] = directory
        return directory

    def delete(self, name: str) -> None:
        """Remove the object, and the directories that are empty without it. Does nothing if there is no such object.

        Raises:
            ValueError: no file can have this name.
        """
        *parents, file = object_path(name).split("/")
        try:
            with self._find(name):
                directory = self._enter(parents)
                try:
                    os.unlink(file, dir_fd=directory)
                    os.fsync(directory)
                finally:
                    os.close(directory)
        except FileNotFoundError:
            return
        self.prune(name)

    def prune(self, name: str) -> None:
        """Remove the directories on the way to an object that have nothing in them."""
        *parents, _ = object_path(name).split("/")
        while parents:
            last = parents.pop()
            try:
                directory = self._enter(parents)
                try:
                    os.rmdir(last, dir_fd=directory)
                finally:
                    os.close(directory)
            except FileNotFoundError:
                continue
            except OSError:
                return

    @contextmanager
    def _find(self, name: str) -> Iterator[int]:
        """A descriptor of the object's file, not open for reading: opening could do something, or wait (a pipe)."""
        missing = FileNotFoundError(errno.ENOENT, "no such object", name)
        try:
            descriptor = os.open(self._inside + object_path(name), os.O_PATH)
        except OSError as error:
            if error.errno in _MISSING:
                raise missing from None
            raise
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode) or not self._is_inside(_path_of(descriptor)):
                raise missing
            yield descriptor
        finally:
            os.close(descriptor)

    def _enter(self, components: list[str], *, create: bool = False) -> int:
        """A descriptor of the directory, which was inside at every step, so that nothing is made outside."""
        directory = os.open(self.root, _DIRECTORY)
        try:
            for component in components:
                try:
                    following = os.open(component, _DIRECTORY, dir_fd=directory)
                except FileNotFoundError:
                    if not create:
                        raise
                    try:
                        os.mkdir(component, dir_fd=directory)
                        os.fsync(directory)
                    except FileExistsError:  # somebody else was faster, or a link leads nowhere
                        if stat.S_ISLNK(os.stat(component, dir_fd=directory, follow_symlinks=False).st_mode):
                            raise
                    following = os.open(component, _DIRECTORY, dir_fd=directory)
                os.close(directory)
                directory = following
                if not self._is_inside(_path_of(directory) + "/"):
                    raise NotADirectoryError(errno.ENOTDIR, "a link leads out of the directory", component)
        except BaseException:
            os.close(directory)
            raise
        return directory

    def _is_inside(self, path: str) -> bool:
        return path.startswith(self._inside)


class _Directory:
    """An open directory, and where it was then. It is closed when nobody refers to it any more."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._path = _path_of(descriptor)

    def is_there(self) -> bool:
        """Whether it was neither moved nor removed."""
        return _path_of(self.descriptor) == self._path

    def __del__(self) -> None:
        os.close(self.descriptor)


class IncomingFile:
    """A file on its way to its goal. As a context manager it leaves nothing behind unless it was committed.

    It is written under another name beside its goal.
    """

    def __init__(self, directory: int, name: str, path: Path, owner: str = "") -> None:
        """
        Args:
            directory: descriptor of the goal's directory, which is closed with this.
            name: the goal's name in it.
            path: the goal's path, for messages.
            owner: part of the name that it has until it is whole.
        """
        self._incoming = _incoming_name(owner)
        self._directory = directory
        self._name = name
        self._path = path
        descriptor = os.open(self._incoming, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666, dir_fd=directory)
        self._file = os.fdopen(descriptor, "wb", buffering=0)

    @classmethod
    def beside(cls, path: Path) -> IncomingFile:
        """Begin to write the file `path`, in a directory that is there.

        Raises:
            FileNotFoundError: the directory is not there.
        """
        directory = os.open(path.parent, _DIRECTORY)
        try:
            return cls(directory, path.name, path)
        except BaseException:
            os.close(directory)
            raise

    def __enter__(self) -> IncomingFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()
        try:
            os.unlink(self._incoming, dir_fd=self._directory)
        except FileNotFoundError:
            pass
        os.close(self._directory)

    def write(self, data: Buffer) -> None:
        """Append to the file."""
        rest = memoryview(data).cast("B")
        while rest:
            rest = rest[self._file.write(rest) :]

    def write_at(self, offset: int, data: Buffer) -> None:
        """Put bytes at an offset; from several threads at once, if they like."""
        rest = memoryview(data).cast("B")
        while rest:
            written = os.pwrite(self._file.fileno(), rest, offset)
            rest, offset = rest[written:], offset + written

    def check_absent(self) -> None:
        """Raise FileExistsError if there is something at the goal already."""
        try:
            os.stat(self._name, dir_fd=self._directory, follow_symlinks=False)
        except FileNotFoundError:
            return
        raise FileExistsError(errno.EEXIST, "there already", str(self._path))

    def commit(self, *, replace: bool = True) -> os.stat_result:
        """Sync what was written to disk, and make it the goal at once, in place of what may be there.

        Raises:
            FileExistsError: there is something already, and not to be replaced.
            ObjectStoreError: no file can be there.
        """
        os.fsync(self._file.fileno())
        try:
            if replace:
                _rename(self._incoming, self._name, self._directory)
            else:
                self._link()
        except FileExistsError:
            raise FileExistsError(errno.EEXIST, "there already", str(self._path)) from None
        except OSError as error:
            raise _unstorable(error, self._path) from None
        os.fsync(self._directory)
        return os.fstat(self._file.fileno())

    def _link(self) -> None:
        """Like `_rename`, where there is nothing yet."""
        try:
            os.link(
                self._incoming,
                self._name,
                src_dir_fd=self._directory,
                dst_dir_fd=self._directory,
                follow_symlinks=False,
            )
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS:
                raise
            self.check_absent()
            _rename(self._incoming, self._name, self._directory)


class FileSlice(Span):
    """The bytes `start` to `stop` (not included) of an open file.

    A file that has become shorter is an error, not an early end. What sends it makes of that what it likes: see
    `unreadable_told`.
    """

    failure: Exception | None = None
    """Why it could not be read."""

    def __init__(self, file: BinaryIO, start: int, stop: int, *, owned: bool = False) -> None:
        """`owned`: the file is closed along with this."""
        super().__init__(start, stop)
        self._file = file
        self._owned = owned

    def readinto(self, buffer: Buffer) -> int:
        try:
            return super().readinto(buffer)
        except Exception as error:
            self.failure = error
            raise

    def _read_into(self, view: memoryview) -> int:
        count = os.preadv(self._file.fileno(), [view], self._position)
        if not count:
            raise ObjectStoreError(f"{self._file.name}: it became shorter while it was read")
        return count

    def close(self) -> None:
        if self._owned and not self.closed:
            self._file.close()
        super().close()


@contextmanager
def unreadable_told(body: object) -> Iterator[None]:
    """Where something is sent that turns out to be a file that cannot be read: that, whatever was made of it.

    A library takes it for the network's failure, which would be tried again.
    """
    try:
        yield
    except Exception:
        if isinstance(body, FileSlice) and body.failure is not None:
            raise body.failure from None
        raise


def _incoming_name(owner: str) -> str:
    """A name that no other file has, not of any process either: a random number for each file would cost more."""
    unique = f"{_RANDOM}-{os.getpid():x}-{next(_NUMBERS):x}"
    return f"{INCOMING}-{owner}-{unique}" if owner else f"{INCOMING}-{unique}"


def _make(directory: Path) -> None:
    """Make a directory that is not there, and those above it, to last."""
    if not directory.is_dir():
        _make(directory.parent)
        directory.mkdir(exist_ok=True)
        parent = os.open(directory.parent, _DIRECTORY)
        try:
            os.fsync(parent)
        finally:
            os.close(parent)


def _rename(incoming: str, file: str, directory: int) -> None:
    """Put a file of a directory in the place of what may be there."""
    try:
        os.rename(incoming, file, src_dir_fd=directory, dst_dir_fd=directory)
    except IsADirectoryError:
        os.rmdir(file, dir_fd=directory)  # where it is empty, there is no object below it
        os.rename(incoming, file, src_dir_fd=directory, dst_dir_fd=directory)


def _path_of(descriptor: int) -> str:
    """The kernel's name for what is open; no link that is changed meanwhile can lead elsewhere."""
    return os.readlink(f"/proc/self/fd/{descriptor}")  # noqa: PTH115 - Path costs more than the call


def _unstorable(error: OSError, path: Path) -> Exception:
    if error.errno in _UNSTORABLE:
        return ObjectStoreError(f"{path}: no object can be stored under this name: {error.strerror}")
    return error
