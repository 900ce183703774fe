"""What a function's address is, and which functions have none."""

from __future__ import annotations

import functools
import json
import sys
import types
from pathlib import Path

import pytest

from mlinfra_prefect.agent.loading import unwrap
from mlinfra_prefect.code import CallableReference, reference, resolve
from mlinfra_prefect.errors import NotImportable

PRINT_REFERENCE = """
import dataclasses, json, sys
from mlinfra_prefect.code import reference
{body}
def fit(): ...
if __name__ == "__main__":
    print(json.dumps(dataclasses.asdict(reference(fit))))
"""


def from_script(result) -> CallableReference:
    assert result.returncode == 0, result.stderr
    return CallableReference(**json.loads(result.stdout.splitlines()[-1]))


def test_a_function_of_a_running_script_is_a_file_reference(project, run_python):
    """`__main__` does not exist on the node; the script's file does, and its directory is where imports start."""
    project({"pyproject.toml": "", "examples/01-first/train.py": PRINT_REFERENCE.format(body="")})
    found = from_script(run_python("examples/01-first/train.py"))
    assert found == CallableReference(None, "examples/01-first/train.py", "fit", "fit", "examples/01-first")
    assert found.text == "examples/01-first/train.py:fit"


def test_a_module_run_with_dash_m_keeps_its_package(project, run_python):
    """`python -m pkg.train` means pkg.train, so that relative imports work on the node as well."""
    project({"pyproject.toml": "", "pkg/__init__.py": "", "pkg/names.py": "",
             "pkg/train.py": PRINT_REFERENCE.format(body="from . import names")})  # fmt: skip
    assert from_script(run_python("-m", "pkg.train")) == CallableReference(None, "pkg/train.py", "fit", "fit", "")


def test_a_script_without_a_project_has_its_own_directory_as_root(project, run_python):
    """No pyproject.toml anywhere: the file is at the package's root."""
    project({"deep/train.py": PRINT_REFERENCE.format(body="")})
    assert from_script(run_python("deep/train.py")) == CallableReference(None, "train.py", "fit", "fit", "")


@pytest.mark.parametrize(
    ("file", "name", "import_root"),
    [
        ("train.py", "train", ""),
        ("pkg/mod.py", "pkg.mod", ""),
        ("src/pkg/mod.py", "pkg.mod", "src"),
        ("src/pkg/__init__.py", "pkg", "src"),
        ("flows/nightly.py", "__prefect_loader_0123__", "flows"),
    ],
)
def test_the_import_root_is_where_the_module_name_starts(project, load_module, file, name, import_root):
    """A src layout, a package and a file that Prefect loaded under a name of its own are told apart by the name."""
    project({"pyproject.toml": "", file: "def fit(): ..."})
    assert reference(load_module(file, name).fit) == CallableReference(None, file, "fit", "fit", import_root)


def test_a_file_inside_a_package_starts_above_the_package(project, load_module):
    """Loaded under an unrelated name, a package's file still imports as part of its package."""
    project({"pyproject.toml": "", "lib/pkg/__init__.py": "", "lib/pkg/mod.py": "def fit(): ..."})
    assert reference(load_module("lib/pkg/mod.py", "__prefect_loader_1__").fit).import_root == "lib"


def test_an_installed_function_is_a_module_reference(project):
    """What lies in site-packages or the standard library is not packed but imported there."""
    project({"pyproject.toml": ""})
    assert reference(json.dumps) == CallableReference("json", None, "dumps", "dumps")
    assert reference(pytest.importorskip("pathspec").lookup_pattern).file is None


def test_site_packages_inside_the_project_are_not_the_project(project, load_module):
    """A virtual environment in the checkout is below the root and still installed code."""
    file = ".venv/lib/python3.11/site-packages/lib.py"
    project({"pyproject.toml": "", file: "def fit(): ..."})
    assert reference(load_module(file, "lib").fit) == CallableReference("lib", None, "fit", "fit")


def test_static_and_class_methods_have_an_address(project, load_module):
    """They are found through their class, a subclass included."""
    project(
        {
            "pyproject.toml": "",
            "t.py": "class A:\n @staticmethod\n def s(): ...\n @classmethod\n def c(cls): ...\nclass B(A): ...",
        }
    )
    module = load_module("t.py", "t")
    assert reference(module.A.s).qualname == "A.s"
    assert reference(module.B.c).qualname == "B.c"


# --- decorators ------------------------------------------------------------------------------------------------------


class OurDecorator:
    """Stands in for @gpu: marks what it wraps."""

    def __init__(self, function):
        functools.update_wrapper(self, function)
        self.__mlinfra_callable__ = function

    def __call__(self):
        raise AssertionError("the decorated call must not run on the node")


def timed(function):
    """A user's decorator."""

    @functools.wraps(function)
    def wrapper():
        return ["timed", function()]

    return wrapper


def body():
    return "body"


def test_prefect_tasks_and_flows_and_our_decorators_come_off():
    """In any order and number, the plain function remains."""
    prefect = pytest.importorskip("prefect")
    assert unwrap(body) is body
    assert unwrap(prefect.task(body)) is body
    assert unwrap(prefect.flow(prefect.task(OurDecorator(prefect.task(body))).fn)) is body


def test_a_users_decorator_below_ours_stays_and_one_above_comes_off():
    """What the user wrote inside runs on the node; what stands outside already ran in the flow."""
    assert unwrap(OurDecorator(timed(body)))() == ["timed", "body"]
    assert unwrap(timed(OurDecorator(body))) is body
    assert unwrap(timed(body))() == ["timed", "body"]


def test_a_decorated_function_is_found_under_its_name(project, load_module):
    """The name leads to the decorated object, and that is the same function."""
    project({"pyproject.toml": "", "t.py": "import functools\n\ndef fit(): ...\n"})
    module = load_module("t.py", "t")
    plain = module.fit
    module.fit = OurDecorator(plain)
    assert reference(module.fit).text == "t.py:fit"
    assert reference(plain).text == "t.py:fit"
    assert resolve(module.fit) is plain


# --- refused ---------------------------------------------------------------------------------------------------------


class Trainer:
    def fit(self): ...

    def __call__(self): ...


def steps():
    yield 1


async def asynchronous_steps():
    yield 1


def maker():
    def inner(): ...

    return inner


@pytest.mark.parametrize(
    ("target", "reason", "remedy"),
    [
        (lambda: 1, "lambda", "by_value=True"),
        (maker(), "inside another function", "by_value=True"),
        (functools.partial(body), "functools.partial", "give it the arguments"),
        (Trainer().fit, "bound to an instance of Trainer", "top level"),
        (Trainer(), "callable object of type Trainer", "top level"),
        (Trainer, "the class Trainer", "top level"),
        (len, "builtin len", "top level"),
        ([].append, "builtin list.append", "top level"),
        (steps, "generator", "top level"),
        (asynchronous_steps, "generator", "top level"),
        (3, "not callable", "top level"),
    ],
)
def test_a_function_without_an_address_is_refused_with_the_reason_and_the_remedy(target, reason, remedy):
    """Each kind has its own sentence; the field is `function`."""
    with pytest.raises(NotImportable) as caught:
        reference(target)
    assert caught.value.field == "function"
    assert reason in caught.value.message
    assert remedy in caught.value.remedy


def test_a_name_that_leads_to_something_else_is_refused(project, load_module):
    """A redefined function, or a wrapper without functools.wraps, would be another function on the node."""
    project({"pyproject.toml": "", "t.py": "def fit(): ..."})
    module = load_module("t.py", "t")
    old, module.fit = module.fit, lambda: None
    with pytest.raises(NotImportable, match="something else"):
        reference(old)
    del module.fit
    with pytest.raises(NotImportable, match="not there"):
        reference(old)


def test_a_function_typed_into_a_session_is_refused_and_by_value_is_named(project, run_python):
    """`python -c` and a notebook have a `__main__` without a file."""
    project({"pyproject.toml": ""})
    result = run_python("-c", "from mlinfra_prefect.code import reference\ndef fit(): ...\nreference(fit)")
    assert "notebook or an interactive session" in result.stderr
    assert "by_value=True" in result.stderr


def test_a_notebook_cell_is_no_file_even_where_the_kernel_pretends(project):
    """ipykernel compiles cells under a temporary path; some front ends set `__file__` to the notebook."""
    root = project({"book.ipynb": "{}", "ipykernel_12/34.py": "def fit(): ..."})
    cell = root / "ipykernel_12/34.py"
    main = types.ModuleType("__main__")
    main.__file__ = str(root / "book.ipynb")
    exec(compile(cell.read_text(), str(cell), "exec"), vars(main))  # noqa: S102 - what a kernel does
    with pytest.raises(NotImportable, match="notebook"):
        reference(main.fit)


# --- text ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train.py:fit", CallableReference(None, "train.py", "fit", "fit")),
        ("./train.py:fit", CallableReference(None, "train.py", "fit", "fit")),
        ("train:fit", CallableReference(None, "train.py", "fit", "fit")),
        ("scripts/deep.py:Trainer.fit", CallableReference(None, "scripts/deep.py", "Trainer.fit", "fit", "scripts")),
        ("pkg.mod:fit", CallableReference(None, "src/pkg/mod.py", "fit", "fit", "src")),
        ("pkg:fit", CallableReference(None, "src/pkg/__init__.py", "fit", "fit", "src")),
        ("json.decoder:JSONDecoder", CallableReference("json.decoder", None, "JSONDecoder", "JSONDecoder")),
    ],
)
def test_text_is_an_address_without_anything_being_imported(project, text, expected):
    """The project comes before what is installed; files that would fail on import are not run."""
    bomb = "raise AssertionError('imported')"
    project(
        {
            "pyproject.toml": "",
            "train.py": bomb,
            "scripts/deep.py": bomb,
            "src/pkg/__init__.py": bomb,
            "src/pkg/mod.py": bomb,
        }
    )
    assert reference(text) == expected
    assert resolve(text) is None or expected.module


@pytest.mark.parametrize(
    "text",
    ["fit", ":fit", "train.py:", "train.py:fit()", "no/such.py:fit", "no.such.module:fit", "a b:fit", "train.py:fit\n",
     "train.py\0:fit", "../outside.py:fit", "os.path;x:y", "-c:fit", "train.py:fit:"],
)  # fmt: skip
def test_text_that_is_no_address_is_refused(project, text):
    """Nothing outside the project, nothing with control characters, nothing that is not there."""
    root = project({"pyproject.toml": "", "train.py": ""})
    (root.parent / "outside.py").write_text("")
    with pytest.raises(NotImportable):
        reference(text)


def test_an_absolute_path_outside_the_project_is_refused(project, tmp_path):
    """Text may come from a form: it never reaches outside."""
    project({"pyproject.toml": ""})
    (tmp_path / "outside.py").write_text("")
    with pytest.raises(NotImportable, match="outside the project root"):
        reference(f"{tmp_path}/outside.py:fit")


def test_text_resolves_to_the_function_that_is_loaded(project, load_module):
    """A loaded module is used as it stands, whatever its name; one that is not loaded stays unloaded."""
    project({"pyproject.toml": "", "train.py": "def fit(): ..."})
    assert resolve("train.py:fit") is None
    module = load_module("train.py", "some_other_name")
    assert resolve("train.py:fit") is module.fit
    assert Path(sys.modules["some_other_name"].__file__).name == "train.py"
