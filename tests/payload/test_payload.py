from __future__ import annotations

import base64
import importlib.util
import json
import shutil
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
import pytest

from etl_server import ETLServer
from etl_server.errors import PayloadError
from etl_server.payload import deserialize_class, local_modules, serialize_class

# Two interpreters do the work: one makes the payloads of all cases, where their files are; the other one loads them and
# transforms, in an empty directory. Each forks for a case, so that cases share nothing but the start of an interpreter.

FORK = """
import json, os, sys, traceback

def in_child(function, *arguments):
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            result = {"value": function(*arguments)}
        except BaseException as error:
            result = {"error": str(error), "trace": traceback.format_exc()}
        with os.fdopen(writing, "w") as pipe:
            json.dump(result, pipe)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    return json.loads(text)
"""

SENDER = (
    FORK
    + """
import importlib
import etl_server.payload

def send(folder, paths, module):
    os.chdir(folder)
    sys.path[:0] = [os.path.join(folder, path) for path in paths]
    cls = importlib.import_module(module).App
    return etl_server.payload.serialize_class(cls), etl_server.payload.local_modules(cls)

print(json.dumps({name: in_child(send, *case) for name, case in json.load(sys.stdin).items()}))
"""
)

RECEIVER = (
    FORK
    + """
import asyncio, importlib.util, inspect, io
from etl_server.payload import deserialize_class

async def collect(pieces):
    return b"".join([piece async for piece in pieces])

def receive(text, files, requests):
    assert not os.listdir(), "the directory is not empty"
    for name in {file.split("/")[0].removesuffix(".py") for file in files}:
        assert importlib.util.find_spec(name) is None, f"{name} can be imported here"
    server = deserialize_class(text)()
    server.setup()
    answers = []
    for data, etl_args in requests:
        if server.streams:
            pieces = server.transform_stream(io.BytesIO(data.encode()), "ais/object", etl_args)
            answer = asyncio.run(collect(pieces)) if inspect.isasyncgen(pieces) else b"".join(pieces)
        else:
            answer = server.transform(data.encode(), "ais/object", etl_args)
            answer = asyncio.run(answer) if inspect.isawaitable(answer) else answer
        answers.append(answer.decode())
    return answers

print(json.dumps({name: in_child(receive, *case) for name, case in json.load(sys.stdin).items()}))
"""
)


@dataclass(frozen=True)
class Case:
    """A class `App` in one of several files, and what it makes of requests on the other side."""

    files: dict[str, str]
    answers: list[str]
    requests: tuple[tuple[str, str], ...] = (("data", ""),)
    """(object, etl_args)"""
    modules: tuple[str, ...] = ("app", "helpers")
    """Those that travel by value."""
    module: str = "app"
    """The one that has the class; `__main__`: `app.py` is run as a script, and serializes the class itself."""
    paths: tuple[str, ...] = (".",)
    """Directories to import from."""


HELPERS = """
PREFIX = b"<"
SUFFIXES = {"end": b">"}

def wrap(data):
    return PREFIX + inner(data) + SUFFIXES["end"]

def inner(data):
    return data.upper()
"""


UNPICKLABLE = """
import socket, dep
SOCKET = socket.socket()
def other(): dep.f(SOCKET)
def one(data): return data
"""


def app(transform: str, head: str = "") -> str:
    """A file with a class whose `transform` returns the value of an expression, or has a body of several lines."""
    body = transform if "\n" in transform else f"return {transform}"
    method = "def transform(self, data, path, etl_args):\n" + textwrap.indent(textwrap.dedent(body).strip(), " " * 4)
    return f"from etl_server import ETLServer\n{head}\nclass App(ETLServer):\n{textwrap.indent(method, ' ' * 4)}\n"


PACKAGE = {
    "pkg/__init__.py": "NAME = b'pkg'\nfrom .deep import core",
    "pkg/sub.py": "from . import NAME\nfrom .deep.core import double\ndef name(data): return NAME + double(data)",
    "pkg/deep/__init__.py": "",
    "pkg/deep/core.py": "from ..constants import TIMES\ndef double(data): return data * TIMES",
    "pkg/constants.py": "TIMES = 2",
}
IN_PACKAGE = ("app", "pkg", "pkg.deep.core", "pkg.sub")

SERIALIZE = """
if __name__ == "__main__":
    import json
    from etl_server.payload import local_modules, serialize_class
    print(json.dumps([serialize_class(App), local_modules(App)]))
"""

NOTEBOOK = """
cells = ["from etl_server import ETLServer; import helpers", "SUFFIX = b'!'", '''
class Base(ETLServer):
    def transform(self, data, path, etl_args): return b"base"
class App(Base):
    def transform(self, data, path, etl_args):
        return super().transform(data, path, etl_args) + helpers.wrap(data) + SUFFIX + outer()
''']
import textwrap
SUFFIX = b"?"
def outer(): return SUFFIX
namespace = {"__name__": NAME, "outer": outer}
for cell in cells:
    exec(textwrap.dedent(cell), namespace)
App = namespace["App"]
"""

CASES = {
    "a script": Case(
        {
            "app.py": app("helpers.wrap(data) + SUFFIX", "import helpers\nSUFFIX = b'!'") + SERIALIZE,
            "helpers.py": HELPERS,
        },
        ["<DATA>!"],
        module="__main__",
        modules=("__main__", "helpers"),
    ),
    "a script of an installed distribution": Case(
        {
            "env/site-packages/app.py": app(
                "twice(data)", "import functools\n@functools.cache\ndef twice(x): return x * 2"
            )
            + SERIALIZE,
        },
        ["datadata"],
        module="__main__",
        modules=("__main__",),
        paths=("env/site-packages",),
    ),
    "import module": Case(
        {"app.py": app("helpers.wrap(data)", "import helpers"), "helpers.py": HELPERS},
        ["<DATA>"],
    ),
    "import module as": Case(
        {"app.py": app("h.wrap(data) + h.PREFIX", "import helpers as h"), "helpers.py": HELPERS},
        ["<DATA><"],
    ),
    "from module import": Case(
        {"app.py": app("wrap(data) + PREFIX", "from helpers import PREFIX, wrap"), "helpers.py": HELPERS},
        ["<DATA><"],
    ),
    "from package.module import": Case(
        {"app.py": app("name(data)", "from pkg.sub import name"), **PACKAGE},
        ["pkgdatadata"],
        modules=("app", "pkg.deep.core", "pkg.sub"),
    ),
    "from package import module": Case(
        {"app.py": app("sub.name(data)", "from pkg import sub"), **PACKAGE},
        ["pkgdatadata"],
        modules=("app", "pkg.deep.core", "pkg.sub"),
    ),
    "import package.module as": Case(
        {"app.py": app("s.name(data)", "import pkg.sub as s"), **PACKAGE},
        ["pkgdatadata"],
        modules=("app", "pkg.deep.core", "pkg.sub"),
    ),
    "import package.module": Case(
        {"app.py": app("pkg.sub.name(data) + pkg.NAME", "import pkg.sub"), **PACKAGE},
        ["pkgdatadatapkg"],
        modules=IN_PACKAGE,
    ),
    "a class inside a package, with relative imports": Case(
        {
            **PACKAGE,
            "pkg/app.py": app(
                "name(data) + core.double(data) + text.upper(data)",
                "from . import text\nfrom .deep import core\nfrom .sub import name",
            ),
            "pkg/text.py": "def upper(data): return data.upper()",
        },
        ["pkgdatadatadatadataDATA"],
        module="pkg.app",
        modules=("pkg.app", "pkg.deep.core", "pkg.sub", "pkg.text"),
    ),
    "a package without __init__.py": Case(
        {"app.py": app("loose.text.upper(data)", "import loose.text"), "loose/text.py": "upper = bytes.upper"},
        ["DATA"],
        modules=("app", "loose", "loose.text"),
    ),
    "import inside a function": Case(
        {
            "app.py": app(
                """
                import helpers
                from helpers import inner
                import pkg.sub
                import pkg.deep.core as core
                def nested():
                    return helpers.wrap(data)
                return nested() + inner(data) + pkg.sub.name(b"x") + core.double(b"y") + pkg.NAME
                """
            ),
            "helpers.py": HELPERS,
            **PACKAGE,
        },
        ["<DATA>DATApkgxxyypkg"],
        modules=("app", "helpers", "pkg", "pkg.deep", "pkg.deep.core", "pkg.sub"),
    ),
    "relative import inside a function": Case(
        {
            **PACKAGE,
            "pkg/app.py": app(
                """
                from . import constants, sub
                from .deep.core import double
                return sub.name(data) + double(data) * constants.TIMES
                """
            ),
        },
        ["pkgdatadatadatadatadatadata"],
        module="pkg.app",
        modules=("pkg", "pkg.app", "pkg.constants", "pkg.deep", "pkg.deep.core", "pkg.sub"),
    ),
    "import of one of two, inside a function": Case(
        {
            "app.py": app(
                """
                try:
                    import fast_one as one
                except ImportError:
                    import helpers as one
                return one.wrap(data)
                """
            ),
            "helpers.py": HELPERS,
        },
        ["<DATA>"],
    ),
    "import inside a function of a helper": Case(
        {
            "app.py": app("helpers.late(data)", "import helpers"),
            "helpers.py": "def late(data):\n    from later import upper\n    return upper(data)",
            "later.py": "def upper(data): return data.upper()",
        },
        ["DATA"],
        modules=("app", "helpers", "later"),
    ),
    "import inside a function, kept on the instance": Case(
        {
            "app.py": app("self.ops.upper(data)").replace(
                "    def transform",
                "    def setup(self):\n        import ops\n        self.ops = ops\n    def transform",
            ),
            "ops.py": "def upper(data): return data.upper()",
        },
        ["DATA"],
        modules=("app", "ops"),
    ),
    "import inside a function, of a module that serializes": Case(
        {
            "app.py": app("import later\nreturn later.upper(data)"),
            "later.py": "from app import App\nfrom etl_server import serialize_class\nTEXT = serialize_class(App)\n"
            "def upper(data): return data.upper()",
        },
        ["DATA"],
        modules=("app", "later"),
    ),
    "modules that import each other": Case(
        {
            "app.py": app("left.down(data, 3)", "import left\nimport right"),
            "left.py": "import right\ndef down(data, n): return right.down(data + b'l', n - 1) if n else data",
            "right.py": "import left\ndef down(data, n): return left.down(data + b'r', n - 1) if n else data",
        },
        ["datalrl"],
        modules=("app", "left", "right"),
    ),
    "a base class in another file": Case(
        {
            "app.py": """
                from base import Base

                class App(Base):
                    def __init__(self, **options):
                        super().__init__(**options)
                        self.suffix = b">"

                    def change(self, data):
                        return super().change(data) + self.suffix
            """,
            "base.py": """
                import abc
                from etl_server import ETLServer
                from mixin import Loud

                class Base(Loud, ETLServer):
                    def __init__(self, **options):
                        super().__init__(**options)
                        self.prefix = b"<"

                    def transform(self, data, path, etl_args):
                        return self.prefix + self.change(data)
            """,
            "mixin.py": """
                import abc

                class Loud(abc.ABC):
                    @abc.abstractmethod
                    def transform(self, data, path, etl_args): ...

                    def change(self, data):
                        return data.upper()
            """,
        },
        ["<DATA>"],
        modules=("app", "base", "mixin"),
    ),
    "state of a module, seen from everywhere": Case(
        {
            "app.py": app(
                """
                helpers.count()
                helpers.step = 10
                helpers.count()
                again()
                return b"%d %d %d" % (helpers.total, SEEN["calls"], helpers.SEEN["calls"])
                """,
                "import helpers\nfrom helpers import SEEN, count as again",
            ),
            "helpers.py": """
                total = 5
                step = 1
                SEEN = {"calls": 0}
                def count():
                    global total
                    total += step
                    SEEN["calls"] += 1
            """,
        },
        ["26 3 3"],
    ),
    "a module as an object": Case(
        {
            "app.py": """
                import functools
                from etl_server import ETLServer
                import ops, held, given, listed, bound

                def call(module, data): return module.upper(data)
                BOUND = functools.partial(call, bound)
                MODULES = {"listed": [listed]}

                class App(ETLServer):
                    held = held
                    def transform(self, data, path, etl_args, given=given):
                        if not etl_args:
                            held.other, ops.other, given.other, listed.other, bound.other
                        if etl_args == "deep":
                            return getattr(ops, etl_args).upper(data)
                        if hasattr(ops, etl_args):
                            return getattr(ops, etl_args)(data)
                        module = {"held": self.held, "given": given, "listed": MODULES["listed"][0]}.get(etl_args)
                        return call(module, data) if module else BOUND(data)
            """,
            "deep.py": "def upper(data): return data.upper()",
            **{
                f"{name}.py": "import deep\nother = 1\ndef upper(data): return data.upper()"
                for name in ("ops", "held", "given", "listed", "bound")
            },
        },
        ["DATA"] * 6,
        requests=tuple(("data", way) for way in ("upper", "held", "given", "listed", "bound", "deep")),
        modules=("app", "bound", "deep", "given", "held", "listed", "ops"),
    ),
    "a module with __getattr__": Case(
        {
            "app.py": app("helpers.something(data)", "import helpers"),
            "helpers.py": "def __getattr__(name):\n    return lambda data: name.encode() + data",
        },
        ["somethingdata"],
    ),
    "what is not needed stays": Case(
        {
            "app.py": app(
                f"""
                if not data:
                    import heavy
                    {"; ".join(f"data.name_{n}" for n in range(300))}
                import late.inner as inner
                import late.deep.core as core
                helpers.called = True
                def nested(): return inner.one(data) + core.one(data)
                return nested() + inner.one(data) + helpers.wrap(data) + pkg.sub.one(data)
                """,
                "import helpers, unused, dep, pkg.sub\nSOCKET = helpers.SOCKET",
            ),
            "helpers.py": HELPERS + UNPICKLABLE,
            "pkg/__init__.py": UNPICKLABLE,
            "pkg/sub.py": UNPICKLABLE,
            "late/__init__.py": UNPICKLABLE,
            "late/inner.py": UNPICKLABLE,
            "late/deep/__init__.py": UNPICKLABLE,
            "late/deep/core.py": UNPICKLABLE,
            "unused.py": UNPICKLABLE,
            "env/lib/python3/site-packages/dep.py": "def f(x): ...",
            "env/lib/python3/site-packages/heavy.py": "raise KeyboardInterrupt",
        },
        ["datadatadata<DATA>data"],
        paths=(".", "env/lib/python3/site-packages"),
        modules=("app", "helpers", "late", "late.deep", "late.deep.core", "late.inner", "pkg", "pkg.sub"),
    ),
    "streaming": Case(
        {
            "app.py": """
                from etl_server import ETLServer
                from helpers import pieces

                class App(ETLServer):
                    def transform_stream(self, reader, path, etl_args):
                        for piece in pieces(reader):
                            yield piece.upper() + b"."
            """,
            "helpers.py": "def pieces(reader):\n    while piece := reader.read(2):\n        yield piece",
        },
        ["DA.TA."],
    ),
    "async": Case(
        {
            "app.py": """
                from etl_server import ETLServer
                import asyncio, helpers

                class App(ETLServer):
                    async def transform(self, data, path, etl_args):
                        async with asyncio.Lock():
                            return await helpers.upper(data)
            """,
            "helpers.py": "import asyncio\nasync def upper(data):\n    await asyncio.sleep(0)\n    return data.upper()",
        },
        ["DATA"],
    ),
    "async streaming": Case(
        {
            "app.py": """
                from etl_server import ETLServer
                import helpers

                class App(ETLServer):
                    async def transform_stream(self, reader, path, etl_args):
                        async for piece in helpers.pieces(reader):
                            yield piece.upper() + b"."
            """,
            "helpers.py": "async def pieces(reader):\n    while piece := reader.read(2):\n        yield piece",
        },
        ["DA.TA."],
    ),
    "what classes are made of": Case(
        {
            "app.py": """
                import dataclasses, enum, functools, json, logging, threading, typing
                from etl_server import ETLServer
                from helpers import repeated, twice

                Name = typing.NewType("Name", str)
                T = typing.TypeVar("T")
                LOG = logging.getLogger(__name__)
                LOCK = threading.Lock()

                class Mode(enum.Enum):
                    LOUD = "loud"
                    QUIET = "quiet"

                    @property
                    def change(self):
                        return bytes.upper if self is Mode.LOUD else bytes.lower

                @dataclasses.dataclass
                class Options(typing.Generic[T]):
                    mode: Mode
                    size: int = 2
                    tags: list = dataclasses.field(default_factory=list)

                class Point(typing.NamedTuple):
                    x: int
                    y: int = 7

                @functools.lru_cache(maxsize=8)
                def fibonacci(n: int) -> int:
                    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)

                parse = functools.cache(json.loads)

                def counted():
                    calls = 0
                    def call():
                        nonlocal calls
                        calls += 1
                        return calls
                    return call

                class App(ETLServer):
                    default: typing.ClassVar[Options] = Options(Mode.LOUD, tags=["a"])
                    calls = staticmethod(counted())
                    guard = threading.RLock()

                    @functools.cached_property
                    def separator(self):
                        return b"|"

                    @property
                    def point(self) -> Point:
                        return Point(3)

                    @classmethod
                    def name_of(cls, name: Name) -> bytes:
                        return cls.__name__.encode() + name.encode()

                    @staticmethod
                    def numbers():
                        yield from range(3)

                    @twice
                    def change(self, data):
                        return data[:2]

                    @functools.cache
                    def quiet(self):
                        return Mode("quiet").change(b"QUIET")

                    def transform(self, data, path, etl_args):
                        LOG.debug("called")
                        self.calls()
                        with LOCK, self.guard:
                            parts = [
                                self.default.mode.change(data),
                                b"%d" % Options(Mode.QUIET).size,
                                self.default.tags[0].encode(),
                                str(Options(Mode.QUIET).tags).encode(),
                                b"%d" % sum(self.point),
                                self.name_of("!"),
                                bytes(48 + n for n in self.numbers()),
                                self.change(data),
                                self.quiet(),
                                b"%d" % self.calls(),
                                b"%d" % fibonacci(20),
                                str(parse("[1]")).encode(),
                                str(dataclasses.fields(Options)[0].default is dataclasses.MISSING).encode(),
                                b"%d" % fibonacci.cache_info().maxsize,
                                repeated(2)(bytes.title)(data),
                            ]
                        return self.separator.join(parts)
            """,
            "helpers.py": """
                import functools

                def twice(function):
                    @functools.wraps(function)
                    def call(*arguments):
                        return function(*arguments) * 2
                    return call

                def repeated(times):
                    def decorate(function):
                        return lambda data: function(data) * times
                    return decorate
            """,
        },
        ["DATA|2|a|[]|10|App!|012|dada|quiet|2|6765|[1]|True|8|DataData"],
    ),
    "a notebook": Case(
        {"app.py": "NAME = 'a_notebook'" + NOTEBOOK, "helpers.py": HELPERS},
        ["base<DATA>!?"],
        modules=("a_notebook", "app", "helpers"),
    ),
    "a notebook by the name of a module": Case(
        {"app.py": "NAME = __name__" + NOTEBOOK, "helpers.py": HELPERS},
        ["base<DATA>!?"],
    ),
    "a namespace without a name": Case(
        {
            "app.py": """
                namespace = {}
                exec('''
                from etl_server import ETLServer
                import functools
                SUFFIX = b"!"
                @functools.cache
                def add(data):
                    return data + SUFFIX
                class App(ETLServer):
                    def transform(self, data, path, etl_args):
                        return add(data)
                '''.replace("\\n                ", "\\n"), namespace)
                App = namespace["App"]
            """,
        },
        ["data!"],
        modules=(),
    ),
    "a module filled by hand": Case(
        {
            "app.py": """
                import sys, types
                made = sys.modules["made"] = types.ModuleType("made")
                exec("import helpers\\nfrom etl_server import ETLServer\\nclass App(ETLServer):\\n"
                     "    def transform(self, data, path, etl_args): return helpers.wrap(data)", made.__dict__)
                App = made.App
            """,
            "helpers.py": HELPERS,
        },
        ["<DATA>"],
        modules=("helpers", "made"),
    ),
}


def run(stdin: object, *arguments: str, cwd: Path) -> Any:
    """The JSON that an interpreter prints."""
    done = subprocess.run(
        [sys.executable, *arguments], input=json.dumps(stdin), cwd=cwd, env={}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def write(folder: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(content))


@pytest.fixture(scope="module")
def sent(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """By case: the payload and the local modules. The files are gone by then."""
    folders = {name: tmp_path_factory.mktemp("project") for name in CASES}
    for name, case in CASES.items():
        write(folders[name], case.files)
    scripts = [name for name, case in CASES.items() if case.module == "__main__"]
    results: dict[str, Any] = {
        name: {"value": run(None, "app.py", cwd=folders[name] / CASES[name].paths[0])} for name in scripts
    }
    jobs = {name: (str(folders[name]), case.paths, case.module) for name, case in CASES.items() if name not in scripts}
    results |= run(jobs, "-c", SENDER, cwd=tmp_path_factory.mktemp("sender"))
    for folder in folders.values():
        shutil.rmtree(folder)
    return results


@pytest.fixture(scope="module")
def received(sent: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """By case: the answers of the class on the other side."""
    jobs = {
        name: (sent[name]["value"][0], list(case.files), case.requests)
        for name, case in CASES.items()
        if "value" in sent[name]
    }
    results: dict[str, Any] = run(
        jobs, "-I", "-W", "error::ImportWarning", "-c", RECEIVER, cwd=tmp_path_factory.mktemp("receiver")
    )
    return results


@pytest.mark.parametrize("name", CASES)
def test_a_class_works_where_its_files_are_not(name: str, sent: dict[str, Any], received: dict[str, Any]) -> None:
    assert "value" in sent[name], sent[name]["trace"]
    assert "value" in received[name], received[name]["trace"]
    assert received[name]["value"] == CASES[name].answers


@pytest.mark.parametrize("name", CASES)
def test_local_modules_are_those_that_travel(name: str, sent: dict[str, Any]) -> None:
    assert tuple(sent[name]["value"][1]) == CASES[name].modules


LIMIT = 3


class Cut(ETLServer):
    mark = b"!"

    def transform(self, data: Any, path: str, etl_args: str) -> bytes:
        return bytes(data[:LIMIT]) + self.mark


class NoTransform(ETLServer):
    pass


def text_of(obj: object) -> str:
    return base64.b64encode(cloudpickle.dumps(obj)).decode()


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty directory to import modules from."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", None)):
            del sys.modules[name]


@pytest.fixture
def registry() -> Iterator[set[str]]:
    """What is registered with cloudpickle; has to be the same after the test."""
    before = cloudpickle.list_registry_pickle_by_value()
    yield before
    assert cloudpickle.list_registry_pickle_by_value() == before


def test_a_payload_is_plain_base64_of_a_cloudpickle() -> None:
    cls = cloudpickle.loads(base64.b64decode(serialize_class(Cut), validate=True))

    assert cls().transform(b"abcdef", "", "") == b"abc!"


def test_white_space_in_a_payload_does_not_matter() -> None:
    text = serialize_class(Cut)

    assert deserialize_class(f"\n \t{text[:76]}\r\n{text[76:]}\n\n").__name__ == "Cut"


def test_loading_a_payload_leaves_the_class_it_was_made_of_alone() -> None:
    before = dict(vars(Cut))

    loaded = deserialize_class(serialize_class(Cut))

    assert loaded is not Cut
    assert dict(vars(Cut)) == before


def test_loading_a_payload_leaves_modules_alone(project: Path) -> None:
    write(project, {"app.py": app("import helpers\nreturn helpers.wrap(data)"), "helpers.py": HELPERS})
    cls = importlib.import_module("app").App
    text = serialize_class(cls)
    helpers = importlib.import_module("helpers")
    vars(helpers)["PREFIX"] = b"changed"

    deserialize_class(text)

    assert sys.modules["helpers"] is helpers
    assert cls().transform(b"data", "", "") == b"changedDATA>"


@pytest.mark.parametrize("cls", [1, "Cut", Cut.transform, object, NoTransform, ETLServer, list[int]])
@pytest.mark.parametrize("function", [serialize_class, local_modules])
def test_what_is_no_transform_class_is_a_type_error(function: Any, cls: Any) -> None:
    with pytest.raises(TypeError, match=r"is not an ETLServer subclass|must override transform\(\) or"):
        function(cls)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_any_encoding_that_contains_ascii_gives_the_same_text(encoding: str) -> None:
    assert deserialize_class(serialize_class(Cut, encoding)).__name__ == "Cut"


@pytest.mark.parametrize("encoding", ["utf-16-le", "cp500"])
def test_an_encoding_without_ascii_is_refused(encoding: str) -> None:
    with pytest.raises(ValueError, match=encoding):
        serialize_class(Cut, encoding)


class Explosive:
    """Fails to load, with a text of two lines."""

    def __reduce__(self) -> Any:
        return exec, ("raise ValueError('two\\nlines')",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "base64 decoding failed: the payload is empty"),
        (" \n", "base64 decoding failed: the payload is empty"),
        ("abc", "base64 decoding failed: "),
        (text_of(Cut) + "$", "base64 decoding failed: "),
        ("ä===", "base64 decoding failed: "),
        (base64.b64encode(b"no pickle").decode(), "unpickling failed: UnpicklingError: "),
        (base64.b64encode(cloudpickle.dumps(Cut)[:-9]).decode(), "unpickling failed: "),
        (base64.b64encode(b"cno_such_module.part\nName\n.").decode(), "module 'no_such_module' is not installed here"),
        (base64.b64encode(b"cos\nno_such_name\n.").decode(), "unpickling failed: AttributeError: "),
        (text_of(Explosive()), "unpickling failed: ValueError: two lines"),
        (text_of(7), "is not an ETLServer subclass, it is an object of type int"),
        (text_of(Cut()), "is not an ETLServer subclass, it is an object of type Cut"),
        (text_of(dict), "class dict is not an ETLServer subclass"),
        (text_of(ETLServer), "class ETLServer is not an ETLServer subclass"),
    ],
)
def test_a_payload_that_cannot_be_loaded_says_which_step_failed(text: str, message: str) -> None:
    with pytest.raises(PayloadError) as caught:
        deserialize_class(text)
    assert message in caught.value.detail
    assert "\n" not in caught.value.detail


@pytest.mark.parametrize(
    ("files", "named"),
    [
        ({"app.py": app("open_one(data)", "from helpers import open_one")}, "helpers.SOCKET"),
        ({"app.py": app("helpers.open_one(data)", "import helpers")}, "helpers.SOCKET"),
        ({"app.py": app("helpers.SOCKET", "import helpers")}, "helpers.SOCKET"),
        ({"app.py": app("getattr(helpers, etl_args)", "import helpers")}, "helpers.SOCKET"),
        ({"app.py": app("import helpers\nreturn helpers.open_one(data)")}, "helpers.SOCKET"),
        (
            {"app.py": app("data") + "    name = property(lambda self: helpers.SOCKET)\nimport helpers"},
            "helpers.SOCKET",
        ),
        ({"app.py": app("KEPT['a'][0]", "import helpers\nKEPT = {'a': [helpers.SOCKET]}")}, "app.KEPT"),
        ({"app.py": app("data") + "    from helpers import SOCKET as kept"}, "app.App.kept"),
    ],
)
def test_what_cannot_be_pickled_is_named(project: Path, registry: set[str], files: dict[str, str], named: str) -> None:
    helpers = "import socket\nTABLE = {}\nSOCKET = socket.socket()\ndef open_one(data): return TABLE, SOCKET\n"
    write(project, files | {"helpers.py": helpers})
    cls = importlib.import_module("app").App

    with pytest.raises(PayloadError, match=rf"^App cannot be serialized: {named}: cannot pickle "):
        serialize_class(cls)

    sys.modules["helpers"].SOCKET.close()


@pytest.mark.parametrize(
    ("files", "folder"),
    [
        ({}, "env/lib/python3.11/site-packages"),
        ({}, "usr/lib/python3/dist-packages"),
        ({"target/dep-1.0.dist-info/METADATA": ""}, "target"),
    ],
)
@pytest.mark.parametrize("module", ["dep/__init__.py", "dep.py", "dep/inner.py"])
def test_what_is_installed_goes_by_name(
    project: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], folder: str, module: str
) -> None:
    write(project, {f"{folder}/{module}": app("data"), **files})
    with monkeypatch.context() as patch:
        patch.syspath_prepend(project / folder)
        name = module.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        cls = importlib.import_module(name).App
        text = serialize_class(cls)
        assert local_modules(cls) == ()
        assert deserialize_class(text) is cls
        for loaded in ("dep", "dep.inner"):
            sys.modules.pop(loaded, None)

    with pytest.raises(PayloadError, match="unpickling failed: module 'dep' is not installed here"):
        deserialize_class(text)


@pytest.mark.parametrize("link", ["env/site-packages/dep.py", "linked"])
def test_what_is_installed_by_links_goes_by_name(project: Path, monkeypatch: pytest.MonkeyPatch, link: str) -> None:
    if link == "linked":
        write(project, {"env/site-packages/dep.py": app("data")})
        (project / link).symlink_to(project / "env/site-packages")
    else:
        write(project, {"cache/dep.py": app("data"), "env/site-packages/other.py": ""})
        (project / link).symlink_to(project / "cache/dep.py")
    monkeypatch.syspath_prepend(project / ("linked" if link == "linked" else "env/site-packages"))

    assert local_modules(importlib.import_module("dep").App) == ()


@pytest.mark.skipif(importlib.util.find_spec("xxlimited") is None, reason="this Python has no compiled module to spare")
def test_a_compiled_module_goes_by_name(project: Path) -> None:
    compiled = importlib.util.find_spec("xxlimited")
    assert compiled is not None
    assert compiled.origin is not None
    shutil.copy(compiled.origin, project)
    write(project, {"app.py": app("str(xxlimited.foo(len(data), 2)).encode()", "import xxlimited")})

    assert local_modules(importlib.import_module("app").App) == ("app",)
    assert sys.modules["xxlimited"].__file__ == str(project / Path(compiled.origin).name)


def test_the_import_machinery_stays(project: Path) -> None:
    write(project, {"app.py": app("getattr(helpers, etl_args)", "import helpers"), "helpers.py": HELPERS})

    data = base64.b64decode(serialize_class(importlib.import_module("app").App))

    assert b"wrap" in data
    assert b"Loader" not in data
    assert b"Spec" not in data


def test_what_the_user_registered_stays_registered_and_travels(
    project: Path, monkeypatch: pytest.MonkeyPatch, registry: set[str]
) -> None:
    write(
        project,
        {
            "app.py": app("helpers.upper(data)", "import helpers, dep"),
            "helpers.py": "import dep.inner\ndef upper(data): return dep.inner.upper(data)",
            "site-packages/dep/__init__.py": "",
            "site-packages/dep/inner.py": "def upper(data): return data.upper()",
        },
    )
    monkeypatch.syspath_prepend(project / "site-packages")
    cls = importlib.import_module("app").App
    assert local_modules(cls) == ("app", "helpers")
    for name in ("dep", "helpers"):
        cloudpickle.register_pickle_by_value(sys.modules[name])
    try:
        assert local_modules(cls) == ("app", "dep", "dep.inner", "helpers")
        assert cloudpickle.list_registry_pickle_by_value() == registry | {"dep", "helpers"}
    finally:
        for name in ("dep", "helpers"):
            cloudpickle.unregister_pickle_by_value(sys.modules[name])


def test_nothing_stays_registered(registry: set[str]) -> None:
    assert local_modules(Cut) == (__name__,)
    assert cloudpickle.list_registry_pickle_by_value() == registry


def test_nothing_stays_registered_when_somebody_else_unregisters(project: Path, registry: set[str]) -> None:
    meddler = "class Meddler:\n    def __reduce__(self):\n        import cloudpickle, sys\n"
    meddler += "        cloudpickle.unregister_pickle_by_value(sys.modules[__name__])\n        return bytes, ()\n"
    write(project, {"app.py": app("MEDDLER", meddler + "MEDDLER = Meddler()")})

    serialize_class(importlib.import_module("app").App)

    assert cloudpickle.list_registry_pickle_by_value() == registry


class Meeting:
    """Notes when two threads pickle it at once."""

    def __init__(self) -> None:
        self.barrier = threading.Barrier(2)
        self.met = False

    def __reduce__(self) -> Any:
        try:
            self.barrier.wait(0.1)
        except threading.BrokenBarrierError:
            return bytes, ()
        self.met = True
        return bytes, ()


def test_one_thread_at_a_time_changes_the_registry(registry: set[str]) -> None:
    meeting = Meeting()
    cls = type("Met", (Cut,), {"meeting": meeting})

    with ThreadPoolExecutor(2) as pool:
        modules = list(pool.map(local_modules, [cls, cls]))

    assert modules == [(__name__,)] * 2
    assert not meeting.met
