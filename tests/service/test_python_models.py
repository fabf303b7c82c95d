"""Models and functions in the operator's own Python files: what is served, what is told, what is kept."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from local_server import local_server

import nablad
from nablad.messages import FailedModel
from nablad.problems import Refusal
from nablad_service.engine.operators import SIGNATURES
from nablad_service.engine.registered import registered_as
from nablad_service.hosting import ModelStore
from nablad_service.hosting import python_models as reading
from nablad_service.hosting.python_models import PythonModels, python_models
from nablad_service.hosting.repository import Repository
from nablad_service.settings import Settings

# A model by the protocol alone, u = a x^2 + b, as an operator without any library would write it.
PARABOLA = """
    import numpy as np

    class Parabola:
        digest = "{digest}"
        source = {{"python": "parabola"}}
        input_shapes = {{"x": (None,)}}
        parameter_shapes = {{"a": (), "b": ()}}
        state_shapes = {{}}
        derivative_order = None

        def initial_params(self, seed=0):
            return {{"a": np.float32(seed + 3), "b": np.float32(1)}}

        def initial_state(self):
            return {{}}

        def apply(self, params, state, x, *, train, key=None):
            return params["a"] * x**2 + params["b"], state

    MODELS = {{"parabola": Parabola()}}
"""
GIVEN = {"a": np.float32(5.0), "b": np.float32(0.0)}


def written(folder: Path, text: str = PARABOLA, name: str = "mine.py", digest: str = "1") -> str:
    (folder / name).write_text(textwrap.dedent(text.format(digest=digest) if text is PARABOLA else text))
    return str(folder / name)


def collected(*files: str) -> PythonModels:
    return python_models(files, lambda name, given: registered_as(name, given, SIGNATURES))


# -- over HTTP


def test_models_and_functions_of_a_file_are_served(tmp_path: Path) -> None:
    text = textwrap.dedent(PARABOLA).format(digest="1")
    text += "\ndef double(x):\n    '''Twice x.'''\n    return 2 * x\n\nFUNCTIONS = {'double': double}\n"
    with local_server("--models", written(tmp_path, text)) as url, nablad.Client(url) as client:
        card = client.model("parabola")
        assert (card.source, card.architecture, card.inputs) == ("python", None, {"x": [None]})
        assert (card.derivative_order, card.loaded, card.parameter_count) == (None, True, 2)
        asked = {"inputs": {"x": np.array([1.0, 2.0], np.float32)}, "model": "parabola"}
        result = client.gradient("sum(double(grad(sum(model(x)), x)))", wrt=["params"], **asked)
        assert result.value == 36.0  # 2 * (6 x), a = 3
        assert result.gradients["params"]["a"] == 12.0
        assert "double" in {operator.name for operator in client.operators()}
        for refused in (
            lambda: client.create_model("parabola", {"layers": [{"dense": [1, 1]}]}),
            lambda: client.delete_model("parabola"),
        ):
            with pytest.raises(
                nablad.RequestError, match=r"mine\.py.*PUT /v1/models/parabola/params"
            ) as caught:
                refused()
            assert (caught.value.code, caught.value.status) == ("python_model", 409)
        client.set_params("parabola", GIVEN)
        assert client.apply("parabola", [1.0]).tolist() == [5.0]


LIBRARIES = """
    import equinox as eqx
    import jax
    import jax.numpy as jnp

    import nablad_models

    mlp = eqx.nn.MLP(2, 1, 8, 1, activation=jnp.tanh, key=jax.random.key(0))

    def init(key):
        return {"w": jax.random.normal(key, (3,))}

    def apply(params, x):
        return x @ params["w"]

    MODELS = {
        "mlp": nablad_models.from_equinox(mlp, example=jax.ShapeDtypeStruct((2,), "float32")),
        "line": nablad_models.from_functions(init, apply, inputs={"x": (3,)}),
    }
"""


@contextmanager
def serving(file: str, folder: Path, log: Path) -> Iterator[nablad.Client]:
    command = [sys.executable, "-m", "nablad", "serve", "--port", "0", "--models", file]
    with (
        log.open("w") as errors,
        subprocess.Popen(
            [*command, "--repository", str(folder)], stdout=subprocess.PIPE, stderr=errors, text=True
        ) as server,
    ):
        assert server.stdout is not None
        try:
            with nablad.Client(server.stdout.readline().split()[3]) as client:
                yield client
        finally:
            server.terminate()


def test_models_of_libraries_keep_their_parameters_over_a_restart(tmp_path: Path) -> None:
    """And their identity: a file that nobody edited is the same one in the next process."""
    file, log = written(tmp_path, LIBRARIES), tmp_path / "log.txt"
    given: dict[str, dict[str, Any]] = {}
    with serving(file, tmp_path / "kept", log) as client:
        assert client.failed_models() == []
        for name in ("mlp", "line"):
            params = client.params(name).params
            assert {leaf.dtype.name for leaf in params.values()} == {"float32"}
            given[name] = {leaf: array + 1 for leaf, array in params.items()}
            client.set_params(name, given[name])
        cards = client.models()
    with serving(file, tmp_path / "kept", log) as client:
        assert client.models() == cards
        for name in given:
            for leaf, array in client.params(name).params.items():
                np.testing.assert_array_equal(array, given[name][leaf])
        assert client.model("mlp").inputs == {"x": [2]}
        assert client.gradient("sum(model(x)**2)", inputs={"x": [[1.0, 2.0]]}, model="mlp").value > 0
    assert log.read_text() == ""


def test_files_that_fail_are_told_and_the_others_are_served(tmp_path: Path) -> None:
    broken = written(tmp_path, "import numpy\n\nMODELS = numpy.absent\n", "broken.py")
    options = ["--models", broken, "--models", written(tmp_path)]
    with local_server(*options) as url, nablad.Client(url) as client:
        assert [model.name for model in client.models()] == ["parabola"]
        (failure,) = client.failed_models()
        assert (failure.name, failure.place) == (None, broken)
        assert failure.reason.startswith("line 3: AttributeError: module 'numpy' has no attribute 'absent'")


def test_the_variable_holds_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NABLAD_MODELS", os.pathsep.join(["a.py", "b.py"]))
    monkeypatch.setenv("NABLAD_REPOSITORY", "")
    assert Settings().models == ("a.py", "b.py")
    assert Settings().repository is None


# -- what fails

FAULTS: dict[str, tuple[str, str]] = {
    # name of the fault: (the file, the reason)
    "a syntax error": ("x = 1\ny = (\n", "line 2: SyntaxError: '(' was never closed"),
    "a missing module": ("import absent_module\n", "line 1: ModuleNotFoundError: No module named"),
    "an error deep in a call": (
        "def f():\n    raise ValueError('no')\n\ndef g():\n    f()\n\ng()\n",
        "line 2: ValueError: no",
    ),
    "an exit": ("import sys\nsys.exit(3)\n", "line 2: SystemExit: 3"),
    "an assertion without a word": ("assert False\n", "line 1: AssertionError"),
    "nothing to serve": ("net = 1\n", "defines neither MODELS"),
    "models that are no mapping": ("MODELS = [1]\n", "MODELS is a list"),
    "functions that are no mapping": ("FUNCTIONS = print\n", "FUNCTIONS is a builtin_function_or_method"),
    "a value that is no model": (
        "MODELS = {'net': 1}\n",
        "'net' is no model: it is of type int without digest",
    ),
    "a class": ("class Net:\n    pass\n\nMODELS = {'net': Net}\n", "'net' is no model: it is the class Net"),
    "a name that is none": ("MODELS = {'my net': 1}\n", "'my net' cannot name a model"),
    "a name that is no text": ("MODELS = {3: 1}\n", "MODELS has the key 3"),
    "a function that is none": ("FUNCTIONS = {'f': 1}\n", "FUNCTIONS has 'f': 1"),
    "a function named as an operator": ("FUNCTIONS = {'sin': abs}\n", "'sin' is an operator already"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_faulty_file_is_told_with_its_line_and_does_no_harm(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    text, reason = FAULTS[name]
    place = written(tmp_path, text, "faulty.py")
    found = collected(place, written(tmp_path))
    assert list(found.models) == ["parabola"]
    (failure,) = found.failed
    assert failure.place == place
    assert reason in failure.reason
    assert f"{place}: {failure.reason}" in caplog.text
    assert [one.name for one in ModelStore(10, python=found).cards()] == ["parabola"]


def test_a_file_that_is_not_there_is_told() -> None:
    (failure,) = collected("/absent/file.py").failed
    assert failure == FailedModel(
        name=None, place="/absent/file.py", reason="FileNotFoundError: there is no such file"
    )


def test_of_two_models_of_one_name_the_first_is_served(tmp_path: Path) -> None:
    first, second = written(tmp_path), written(tmp_path, name="second.py", digest="2")
    store = ModelStore(10, python=collected(first, second))
    assert store.get("parabola").model.digest == "1"
    (failure,) = store.failed()
    assert (failure.name, failure.place) == ("parabola", second)
    assert failure.reason == f"the name 'parabola' is taken by {first}"


def test_a_model_that_cannot_draw_its_parameters_is_told(tmp_path: Path) -> None:
    text = textwrap.dedent(PARABOLA).format(digest="1").replace('"b": np.float32(1)', '"c": np.float32(1)')
    store = ModelStore(10, python=collected(written(tmp_path, text)))
    (failure,) = store.failed()
    assert failure.name == "parabola"
    assert "b () is missing" in failure.reason
    with pytest.raises(Refusal, match="not_loaded: 'parabola' could not be loaded"):
        store.get("parabola")


def test_files_import_their_neighbours_and_hide_nothing(tmp_path: Path) -> None:
    (tmp_path / "numpy.py").write_text("raise RuntimeError('not this one')\n")
    (tmp_path / "nablad_test_neighbour.py").write_text("ANSWER = 42\n")
    text = (
        "import numpy\nfrom nablad_test_neighbour import ANSWER\n\nFUNCTIONS = {'answer': lambda x: ANSWER}\n"
    )
    found = collected(written(tmp_path, text))
    assert found.failed == []
    assert found.functions["answer"](0) == 42


def test_installed_packages_bring_models_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, name="nablad_test_package.py")
    monkeypatch.syspath_prepend(tmp_path)
    points = [
        EntryPoint("good", "nablad_test_package", "nablad.models"),
        EntryPoint("bad", "nablad_test_absent", "nablad.models"),
    ]
    monkeypatch.setattr(reading, "entry_points", lambda group: points)
    found = collected()
    assert found.places == {"parabola": "nablad_test_package (entry point 'good')"}
    (failure,) = found.failed
    assert failure.place == "nablad_test_absent (entry point 'bad')"


# -- with a repository


def store_of(repository: Repository, *files: str) -> ModelStore:
    return ModelStore(10, repository=repository, python=collected(*files))


@pytest.fixture
def repository(tmp_path: Path) -> Any:
    (tmp_path / "kept").mkdir()
    opened = Repository.open(tmp_path / "kept")
    yield opened
    opened.close()


def test_parameters_of_a_python_model_are_kept(tmp_path: Path, repository: Repository) -> None:
    file = written(tmp_path)
    store = store_of(repository, file)
    assert repository.names() == []  # what nobody changed is in the file
    version = store.set_params("parabola", GIVEN, None).version
    again = store_of(repository, file)
    assert again.get("parabola").version == version
    assert again.get("parabola").params["a"] == 5.0
    assert again.card("parabola").source == "python"
    assert again.unload("parabola").loaded is False
    assert again.load("parabola").version == version


def test_a_python_model_that_nobody_changed_can_be_unloaded_too(
    tmp_path: Path, repository: Repository
) -> None:
    store = store_of(repository, written(tmp_path))
    version = store.unload("parabola").version
    assert store.load("parabola").version == version


def test_parameters_stay_when_the_code_changes_and_they_still_fit(
    tmp_path: Path, repository: Repository, caplog: pytest.LogCaptureFixture
) -> None:
    store_of(repository, written(tmp_path)).set_params("parabola", GIVEN, None)
    edited = store_of(repository, written(tmp_path, digest="2"))
    assert edited.get("parabola").params["a"] == 5.0
    assert "its Python code has changed since its parameters were kept" in caplog.text
    caplog.clear()
    edited.set_params("parabola", GIVEN, None)
    store_of(repository, written(tmp_path, digest="2"))
    assert caplog.text == ""


def test_parameters_that_no_longer_fit_fail_until_others_are_put(
    tmp_path: Path, repository: Repository
) -> None:
    store_of(repository, written(tmp_path)).set_params("parabola", GIVEN, None)
    other = textwrap.dedent(PARABOLA).format(digest="2").replace('"a"', '"slope"')
    store = store_of(repository, written(tmp_path, other))
    (failure,) = store.failed()
    assert "slope () is missing" in failure.reason
    assert "a is not one of the model's" in failure.reason
    store.set_params("parabola", {"slope": np.float32(2.0), "b": np.float32(0.0)}, None)
    assert store.failed() == []
    assert store_of(repository, written(tmp_path, other)).get("parabola").params["slope"] == 2.0


def test_kept_parameters_wait_for_their_file(tmp_path: Path, repository: Repository) -> None:
    file = written(tmp_path)
    store_of(repository, file).set_params("parabola", GIVEN, None)
    without = store_of(repository)
    assert "no file of --models has one of that name" in without.failed()[0].reason
    assert store_of(repository, file).get("parabola").params["a"] == 5.0
    without.delete("parabola")
    assert store_of(repository, file).get("parabola").params["a"] == 3.0


def test_a_model_of_the_repository_goes_before_one_of_a_file(tmp_path: Path, repository: Repository) -> None:
    layers = {"layers": [{"dense": [1, 1]}]}
    store_of(repository).put("parabola", layers, None, None, 0)
    file = written(tmp_path)
    store = store_of(repository, file)
    assert store.card("parabola").source == "layers"
    (failure,) = store.failed()
    assert (failure.name, failure.place) == ("parabola", file)
    assert "the repository holds another model" in failure.reason
    store.put("parabola", layers, None, None, 1)
    store.delete("parabola")
    assert store_of(repository, file).card("parabola").source == "python"
